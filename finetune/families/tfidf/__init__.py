"""TF-IDF and a linear model: the floor."""
