"""One run, from its settings to its row; start reading in trainer.py."""
