"""Methods compared on the same test examples, over seeds: what is different, what is shown, what is worth its cost."""
