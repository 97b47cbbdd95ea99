"""Data sources, one file for each kind; `fedkd.data.registry` names them."""
