"""Strategies whose clients train two models: a personal and a shared one.

Start with `ditto`.
"""
