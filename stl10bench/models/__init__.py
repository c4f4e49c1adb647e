"""Model names -> modules."""
