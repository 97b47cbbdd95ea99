"""Runs side by side: what there is below a folder, and how two of them differ."""
