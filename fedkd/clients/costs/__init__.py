"""Estimates of memory and arithmetic before a run."""
