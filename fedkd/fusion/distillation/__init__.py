"""Strategies that exchange predictions: clients distil from fused ones (start: `knfu`)."""
