"""Loggers send a run's figures to other tools; they never stop or delay the run."""
