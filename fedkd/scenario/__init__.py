"""What to simulate: the scenario schema, loading and overrides."""
