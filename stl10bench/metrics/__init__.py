"""Logits and labels -> numbers with intervals."""
