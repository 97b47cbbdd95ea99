"""Benches: many scenarios from one file, run side by side, compared with error bars."""
