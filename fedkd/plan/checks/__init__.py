"""Checks of a scenario before the run (start: `capability_table`)."""
