"""Local optimisation: the loop, losses, optimisers and evaluation, on torch and numpy alone."""
