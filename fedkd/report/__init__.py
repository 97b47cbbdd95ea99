"""Tables and figures: what a reader sees of runs that are done."""
