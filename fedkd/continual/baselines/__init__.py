"""Baselines and references: plain training on the stream, on all tasks so far, or on each alone."""
