"""Learners that add separate weights for each task."""
