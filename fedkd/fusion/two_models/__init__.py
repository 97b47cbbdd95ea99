"""Strategies whose clients train two models: one of their own and one that is shared.

Start with `ditto`.
"""
