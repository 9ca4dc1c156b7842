"""Pretrained models with a classification head, and from texts to logits to answers."""
