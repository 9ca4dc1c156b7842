"""Settings tried before a run: as many trials, or as much time, for every method, by validation rows alone."""
