"""Continued pretraining: an encoder is trained on the user's own texts, without labels, before any method begins."""
