"""Strategies that exchange predictions: clients learn from fused predictions by distillation.

Start with `knfu`.
"""
