"""Faster forms of the subspace learners' steps; `training.fast = false` goes without them."""
