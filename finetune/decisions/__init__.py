"""From a model's scores to what it answers: probabilities that hold, labels by their costs, sets, and silence."""
