"""Kernels of models that are there for speed alone; `training.fast = false` goes without them."""
