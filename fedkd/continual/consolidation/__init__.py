"""Learners that hold groups of weights to targets, each with a strength of its own."""
