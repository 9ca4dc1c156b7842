"""What can be fitted, one family each: an encoder, a TextCNN, TF-IDF."""
