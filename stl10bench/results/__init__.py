"""The run folder, rows, and the tables made from them."""
