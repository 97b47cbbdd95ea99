"""Strategies that do not beat local training or the plain mean in our benches, or that nobody published.

Nothing else depends on them.
"""
