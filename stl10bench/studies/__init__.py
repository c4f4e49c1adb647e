"""Studies: what a setting is worth, with its noise, over any number of processes."""
