"""Learners that keep samples of earlier tasks; start with `er`."""
