"""Partitions: the assignment of samples to clients."""
