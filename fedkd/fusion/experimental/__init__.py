"""Strategies without a gain over local training or the plain mean in our benches, or without a paper."""
