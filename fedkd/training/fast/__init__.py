"""What is there for speed alone: recorded steps, joint training, thread pools.

`training.fast = false` runs the plain code instead.
"""
