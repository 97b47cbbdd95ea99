"""Fusion strategies: what clients send, how the server combines it, what a client then minimises."""
