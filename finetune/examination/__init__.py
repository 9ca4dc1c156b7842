"""A model's files are examined before any library reads them: what they name, how large, and what is in them.

What is known to be harmless is let through; the rest is refused in one line. Nothing here imports torch.
"""
