"""Load, split, tokenize and batch labelled text."""
