"""Continual learning: task learners, one file a method, and the continual metrics."""
