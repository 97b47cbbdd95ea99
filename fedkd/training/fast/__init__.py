"""Parts for speed alone: recorded steps, joint training, thread pools (`training.fast`)."""
