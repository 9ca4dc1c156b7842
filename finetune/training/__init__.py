"""The `Trainer`, its progress report, and the run directory."""
