"""Faster steps of the subspace learners; `training.fast = false` turns them off."""
