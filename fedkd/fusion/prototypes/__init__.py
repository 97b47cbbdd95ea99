"""Strategies that exchange one array a class: mean features, mean logits, or a generator of them.

Start with `fedproto`.
"""
