"""Faster training: recorded steps, joint training, thread pools (`training.fast`)."""
