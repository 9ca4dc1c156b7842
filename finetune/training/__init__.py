"""The `Trainer`, its checkpoints and signals, and its progress report."""
