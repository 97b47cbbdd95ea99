"""The Ray engine: a pool of actors that own clients, on a machine or cluster (start with `grid`)."""
