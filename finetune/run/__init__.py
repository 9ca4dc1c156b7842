"""A run's directory: its record `run.json`, its life, what a resume may change, and the processes that share it."""
