"""Data examined before it is trusted: what would make a figure wrong or a model useless, with example rows."""
