"""Curves of runs, and pictures of data and models."""
