"""Faster kernels of models; `training.fast = false` turns them off."""
