"""Mathematics that strategies share: pure functions on NumPy arrays.

Start with `probabilities`.
"""
