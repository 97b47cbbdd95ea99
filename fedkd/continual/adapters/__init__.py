"""Learners that add weights of each task's own."""
