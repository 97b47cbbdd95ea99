"""The models that scenarios name: one file an architecture."""
