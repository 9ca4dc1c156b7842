"""What others use after training: load, predict, evaluate."""
