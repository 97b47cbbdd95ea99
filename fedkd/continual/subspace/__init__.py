"""Learners that protect the subspaces of old tasks' inputs.

Start with `gpm`; `bases` has the mathematics.
"""
