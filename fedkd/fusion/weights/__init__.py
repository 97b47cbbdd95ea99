"""Strategies that exchange weights: averaging, gossip, corrections of local training.

Start with `averaging`.
"""
