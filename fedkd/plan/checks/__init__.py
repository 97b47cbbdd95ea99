"""Checks of a scenario before anything runs: rules between keys, models, data and strategies.

Start with `capability_table`.
"""
