"""Loggers: where figures of a run go besides its folder. None can stop a run, or have it wait."""
