"""Strategies without a gain in our benches over local training or the mean, or without a paper."""
