"""Strategies for streams of tasks: they exchange masks, adapters or synthetic samples.

Start with `fedweit`.
"""
