"""Partitions: which client gets which sample.

Start with `schemes`.
"""
