"""A saved model used: loaded, and asked for predictions and for its metrics on the test split."""
