"""Other people's text (names of files, classes, models) -> text that means nothing where it goes."""

import re
import unicodedata


def clean(text: str) -> str:
    """On one line, without control characters and what cannot be encoded."""
    return "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)


def markdown(text: str) -> str:
    """For Markdown, in a line or a table's cell."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", clean(text))


def spreadsheet(text: str) -> str:
    """For CSV: what a spreadsheet would run as a formula is quoted with '."""
    text = clean(text)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
