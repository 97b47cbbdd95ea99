"""Streams of tasks: their plan, and the data of each task."""
