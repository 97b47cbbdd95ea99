"""A federation that is no simulation: every client a node of its own, with its own data."""
