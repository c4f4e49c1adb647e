"""Other people's text -> what Markdown, CSV, LaTeX or HTML shows as it is; light."""

import html as standard_html
import re
import unicodedata
from typing import Any

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row it would begin an argument
    "]": "{]}",
    "-": "-",
    **{character: f"\\{character}" for character in "&%$#_"},
}


def clean(text: str) -> str:
    """One line, without control characters."""
    return "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text)


def markdown(text: str) -> str:
    """Text in which nothing is Markdown or HTML; brackets around numbers alone stay as they are."""
    return re.sub(
        r"\[[-+\d., %]+\](?![(\[])|[\\|<>*_`\[\]&]",
        lambda found: found[0] if len(found[0]) > 1 else f"\\{found[0]}",
        clean(text),
    )


def latex(text: str) -> str:
    """Text for LaTeX's text mode; two hyphens stay two."""
    return "".join(_LATEX.get(c, c) for c in clean(text)).replace("--", "-{}-")


def html(text: str) -> str:
    """Text for an HTML element or a quoted attribute."""
    return standard_html.escape(clean(text))


def csv(value: Any) -> Any:
    """A cell that a spreadsheet will not run: text that looks like a formula is quoted with '.

    Numbers stay numbers.
    """
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
