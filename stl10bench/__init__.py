"""Train and compare image classifiers on STL-10."""

__version__ = "0.1.0"
