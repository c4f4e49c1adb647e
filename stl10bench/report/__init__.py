"""Finished runs -> one page that needs nothing but itself: results, figures, mistakes, commands."""
