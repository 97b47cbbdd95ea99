"""Evaluation of a client: before and after fusion, on every task, and of pairwise transfer."""
