"""TextCNN (Kim 2014): the network, and the words that it reads."""
