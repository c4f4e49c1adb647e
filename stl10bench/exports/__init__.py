"""A trained model -> files for other programs, compared before they are kept."""
