"""A model on the Hugging Face Hub: its folder, its card, its upload."""
