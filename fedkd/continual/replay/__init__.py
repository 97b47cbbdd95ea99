"""Learners that keep samples of earlier tasks.

Start with `er`.
"""
