"""Errors, files, console, device and seeding: what every layer stands on."""

__version__ = "0.2.0"
