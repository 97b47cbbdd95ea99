"""The report of a run, of several side by side, and of a bench: one page that opens offline."""
