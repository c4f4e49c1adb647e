"""A finished model at work: predict, evaluate, export."""
