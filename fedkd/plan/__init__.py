"""A scenario resolved once: names looked up, hyper-parameters bound, requirements checked, schedule drawn."""
