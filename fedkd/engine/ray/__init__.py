"""The Ray engine: a pool of actors that own clients, on one machine or a cluster.

Start with `grid`.
"""
