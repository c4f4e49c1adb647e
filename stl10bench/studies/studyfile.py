"""A TOML file, or words of a command line -> a study; light."""

import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stl10bench import files
from stl10bench.config import Scalar
from stl10bench.errors import UsageError
from stl10bench.studies.study import Factor, Range, Study, Value

_LIMIT = 1 << 16  # bytes
_SCALARS = ("bool", "int", "float", "str")
_TYPES = {"range", "values", "bundles", *_SCALARS, f"list[union[{','.join(_SCALARS)}]]"}


def read(path: Path) -> Study:
    """The study in a TOML file; its name is the file's, unless it says one.

    Raises UsageError with the line and the key for what is no study, or for more than 64 KB.
    """
    try:
        text = files.read(path, _LIMIT, UsageError).decode()
        given = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    try:
        return Study.model_validate({"name": path.stem, **given})
    except ValidationError as error:
        where, why = explain(error)
        line = _line(text, where)
        at = f"{path}, line {line}" if line else f"{path}"
        raise UsageError(f"{at}: {'.'.join(where) or 'study'}: {why}") from None


def located(path: Path, error: UsageError) -> UsageError:
    """What is wrong with a study that was read, with the line of the first key that it names."""
    text = files.read(path, _LIMIT, UsageError).decode()
    lines = (_line(text, [word]) for word in re.findall(r"\w+", str(error)))
    line = next((line for line in lines if line is not None), None)
    return UsageError(f"{path}, line {line}: {error}" if line else f"{path}: {error}")


def vary(text: str) -> tuple[str, Factor]:
    """`lr=1e-3,1e-4`, `hidden=512,256/128` or `lr=1e-5..1e-1:log` -> a factor's name and values.

    Values are separated by commas, or by slashes where the values themselves have commas.
    """
    name, sign, given = text.partition("=")
    if not sign or not name or not given:
        raise UsageError(f"--vary {text}: must be NAME=VALUE,VALUE or NAME=LOW..HIGH, e.g. lr=1,2")
    if ".." in given:
        low, _, rest = given.partition("..")
        high, _, scale = rest.partition(":")
        if scale not in ("", "log"):
            raise UsageError(f"--vary {text}: a range is LOW..HIGH or LOW..HIGH:log")
        try:
            return name, Range.model_validate(
                {"low": _scalar(low), "high": _scalar(high), "log": bool(scale)}
            )
        except ValidationError as error:
            raise UsageError(f"--vary {text}: {_rule(error.errors()[0])}") from None
    values: list[Value] = [_scalar(part) for part in given.split(",")]
    if "/" in given:
        values = [[_scalar(item) for item in part.split(",")] for part in given.split("/")]
    if any("" in (value if isinstance(value, list) else [value]) for value in values):
        raise UsageError(f"--vary {text}: an empty value; separate values by one comma")
    return name, values


def _scalar(text: str) -> Scalar:
    """A word of the command line as a number, true or false, or itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)


def explain(error: ValidationError) -> tuple[list[str], str]:
    """The keys that lead to a study's first wrong value, and what is wrong with it."""
    first = min(error.errors(include_url=False), key=lambda one: one["type"] == "missing")
    where = [part for part in first["loc"] if isinstance(part, str) and part not in _TYPES]
    return where, _rule(first)


def _rule(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        known = Range if "range" in problem["loc"] else Study
        near = get_close_matches(key, list(known.model_fields), n=1, cutoff=0.5)
        return "unknown key" + (f": did you mean {near[0]!r}?" if near else "")
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == "union_tag_not_found":
        return (
            f"{problem['input']!r}: must be a list of values, a range with low and high, or a table"
        )
    if problem["type"] == "too_short":
        return "needs at least one value"
    if problem["loc"] and problem["loc"][-1] in _TYPES:
        return f"{problem['input']!r}: must be a number, a word, true or false, or a list of them"
    return f"{problem['input']!r}: {problem['msg']}"


def _line(text: str, where: Sequence[str]) -> int | None:
    """The number of the line that has the last key of `where` that the file has."""
    for key in reversed(where):
        found = re.search(rf"""^\s*\[?[\w.\s"']*\b{re.escape(key)}\b["']?\s*[=.\]]""", text, re.M)
        if found:
            return text[: found.end()].count("\n") + 1
    return None
