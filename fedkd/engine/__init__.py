"""Where client work runs: Flower grids over Ray actors, and in this process."""
