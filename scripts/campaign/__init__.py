"""A campaign of hostile cases against fedkd: see `scripts/fuzz.py`."""
