"""Stored rows -> tables: repeats combined, compared, and put in order."""
