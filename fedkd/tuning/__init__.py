"""Searching for hyper-parameters on held-out samples, with Optuna."""
