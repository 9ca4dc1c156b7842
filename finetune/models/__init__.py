"""Pretrained encoders with a classification head, TextCNN, and the TF-IDF floor."""
