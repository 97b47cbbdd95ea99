"""Simulations from start to results: `runner` starts them, `results` reads them, `check` looks ahead."""
