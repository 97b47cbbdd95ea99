"""One file for each place data sets come from; `fedkd.data.registry` names them."""
