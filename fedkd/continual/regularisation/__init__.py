"""Learners that penalise changes of important weights or of outputs; start with `ewc`."""
