"""Learners that protect the subspaces of old tasks' inputs; `bases` has the mathematics."""
