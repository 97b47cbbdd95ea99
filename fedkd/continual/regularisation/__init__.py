"""Learners that penalise changes: of important weights, or of what the network answers.

Start with `ewc`.
"""
