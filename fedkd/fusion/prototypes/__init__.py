"""Strategies that exchange an array per class: mean features, mean logits, or a generator.

Start with `fedproto`.
"""
