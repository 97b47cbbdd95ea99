"""Strategies that exchange predictions: clients distil fused ones (start with `knfu`)."""
