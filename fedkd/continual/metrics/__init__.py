"""Continual metrics, and the accuracy matrices that they are made of."""
