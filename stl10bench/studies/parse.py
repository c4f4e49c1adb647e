"""A name, a TOML file or words of a command line -> the study that is meant."""

import re
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import as_file
from importlib.resources import files as package_files
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from stl10bench.config import RANGES, Scalar
from stl10bench.core import files
from stl10bench.core.errors import UsageError, unknown
from stl10bench.studies.study import Factor, Range, Settings, Study, Value, label

REPORT = (  # the studies of the report, in its order
    *("logistic-lr", "logistic-batch-size", "logistic-optimizer", "mlp-lr-batch-size"),
    *("mlp-hidden", "cnn-lr-batch-size", "cnn-dropout", "mobilenetv2-lr-batch-size"),
    "mobilenetv2-freeze",
)
PRESETS = (
    *REPORT,
    *("augmentations", "input-size", "label-efficiency", "resize-or-crop", "optimizers"),
    "precision",
)

_LIMIT = 1 << 16  # bytes
_SCALARS = ("bool", "int", "float", "str")
_SCALAR = f"union[{','.join(_SCALARS)}]"
_TYPES = {
    *("range", "values", "bundles", *_SCALARS),
    *(f"list[{_SCALAR}]", f"dict[str,{_SCALAR}]"),
}


def preset(name: str) -> Study:
    """The study of that name in presets/; raises UsageError with the nearest one.

    They were made for a GPU; on a CPU take fewer values (`--vary lr=1e-3,1e-4`), epochs or seeds.
    """
    if name not in PRESETS:
        raise unknown("study", name, PRESETS, remedy="('stl10bench study list' lists them)")
    with as_file(package_files(__package__) / "presets" / f"{name}.toml") as path:
        return read(path)


def read(path: Path) -> Study:
    """The study in a TOML file; its name is the file's, unless it says one.

    Raises UsageError with the line and the key for what is no study, or for more than 64 KB.
    """
    values = files.read_toml(path, UsageError, limit=_LIMIT)
    try:
        return Study.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        where, why = explain(error)
        line = _line(files.read(path, _LIMIT, UsageError).decode(), where)
        at = f"{path}, line {line}" if line else f"{path}"
        raise UsageError(f"{at}: {'.'.join(where) or 'study'}: {why}") from None


def located(path: Path, error: UsageError) -> UsageError:
    """What is wrong with a study that was read, with the line of the first key that it names."""
    text = files.read(path, _LIMIT, UsageError).decode()
    lines = (_line(text, [word]) for word in re.findall(r"\w+", str(error)))
    line = next((line for line in lines if line is not None), None)
    return UsageError(f"{path}, line {line}: {error}" if line else f"{path}: {error}")


def parse_factor(text: str) -> tuple[str, Factor]:
    """`lr=1e-3,1e-4`, `hidden=512,256/128` or `lr=1e-5..1e-1:log` -> a factor's name and values.

    Values are separated by commas, or by slashes where the values themselves have commas.
    """
    name, sign, listed = text.partition("=")
    if not sign or not name or not listed:
        raise UsageError(f"--vary {text}: must be NAME=VALUE,VALUE or NAME=LOW..HIGH, e.g. lr=1,2")
    if ".." in listed:
        low, _, rest = listed.partition("..")
        high, _, scale = rest.partition(":")
        if scale not in ("", "log"):
            raise UsageError(f"--vary {text}: a range must be LOW..HIGH or LOW..HIGH:log")
        try:
            return name, Range.model_validate(
                {"low": _scalar(low), "high": _scalar(high), "log": bool(scale)}
            )
        except ValidationError as error:
            raise UsageError(f"--vary {text}: {_rule(error.errors()[0])}") from None
    values: list[Value] = [_scalar(part) for part in listed.split(",")]
    if "/" in listed:
        values = [[_scalar(item) for item in part.split(",")] for part in listed.split("/")]
    if any("" in (value if isinstance(value, list) else [value]) for value in values):
        raise UsageError(f"--vary {text}: a value is empty; separate values by one comma")
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
    first = min(error.errors(include_url=False), key=lambda problem: problem["type"] == "missing")
    where = [part for part in first["loc"] if isinstance(part, str) and part not in _TYPES]
    return where, _rule(first)


def _rule(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        model = Range if "range" in problem["loc"] else Study
        near = get_close_matches(key, list(model.model_fields), n=1, cutoff=0.5)
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
        pattern = rf"""^\s*\[?[\w.\s"']*\b{re.escape(key)}\b["']?\s*[=.\]]"""
        if match := re.search(pattern, text, re.M):
            return text[: match.end()].count("\n") + 1
    return None


class Changes(NamedTuple):
    """What is asked for in place of what a study says; None: as it says."""

    model: str | None = None
    recipe: str | None = None
    vary: Sequence[str] = ()  # NAME=A,B each
    seeds: int | None = None
    settings: Mapping[str, Any] = MappingProxyType({})


AS_IT_IS = Changes()


def define(name: str | None, changes: Changes = AS_IT_IS, stored: Study | None = None) -> Study:
    """A study by its name, from a TOML file (`name` ends in .toml), or of a model and factors.

    `stored` is the one of that name that has run, for a name that is not one of ours.

    A factor that the study has gets the values of `changes`, one with named bundles those named;
    another factor is varied as well. Raises UsageError.
    """
    model, recipe, vary, seeds, settings = changes
    factors: dict[str, Factor] = {}
    for text in vary:
        factor, values = parse_factor(text)
        if factor in factors:
            raise UsageError(f"--vary {text}: {factor} is varied twice; list all values in one")
        factors[factor] = values
    if name is not None:
        fields = _changed(stored or _named(name), model, recipe, factors)
    elif model and factors:
        fields = {"name": _slug(model, "by", *factors), "model": model, "vary": factors}
    else:
        raise UsageError(
            "Missing study name: pass one ('stl10bench study list' lists them), a .toml file, or "
            "--model MODEL --vary NAME=VALUE,VALUE"
        )
    fields["settings"] = {**fields.get("settings", {}), **plain(settings)}
    if recipe is not None:
        fields["recipe"] = recipe
    if seeds is not None:
        fields["seeds"] = seeds
    try:
        return Study.model_validate(fields)
    except ValidationError as error:
        where, why = explain(error)
        raise UsageError(f"study {fields['name']}: {'.'.join(where)}: {why}") from None


def as_command(study: Study) -> str:
    """The command that runs a study: its name, and how it differs from the one of that name.

    What a command cannot say, such as options of a method, is left out.
    """
    words = ["stl10bench", "study", "run", study.name]
    if study.name not in PRESETS:  # it has run, so that its name means all of it
        return shlex.join(words)
    ours = preset(study.name)
    for name, factor in study.vary.items():
        if factor != ours.vary.get(name) and not isinstance(factor, Range):
            values = list(factor)  # of named bundles, the names of those that are left
            between = "/" if any(isinstance(value, list) for value in values) else ","
            words += ["--vary", f"{name}={between.join(map(word, values))}"]
    for key, value in study.settings.items():
        if value != ours.settings.get(key) and not isinstance(value, dict):
            words += ["--set", f"{key}={word(value)}"]
    if study.recipe != ours.recipe:
        words += ["--recipe", study.recipe]
    if study.seeds != ours.seeds:
        words += ["--seeds", str(len(study.seeds))]
    return shlex.join(words)


def word(value: Any) -> str:
    """A value, or a list or tuple of values, as the command line takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(word, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _changed(
    study: Study, model: str | None, recipe: str | None, factors: Mapping[str, Factor]
) -> dict[str, Any]:
    """The fields of a study with another model or other factors, and without what then is not so.

    The report's finding is then of other settings; of another model it says nothing.
    """
    fields = {key: getattr(study, key) for key in study.model_fields_set}
    fields["vary"] = dict(study.vary) | {
        name: _narrowed(name, study.vary.get(name), values) for name, values in factors.items()
    }
    other_model = model is not None and model != study.model
    wider = len(fields["vary"]) > len(study.vary)
    if other_model or wider:
        fields["about"] = ""
    if other_model or wider or recipe not in (None, study.recipe):
        fields["best"] = {}  # so that nothing is compared with the report's finding
    if other_model:
        fields |= {"model": model, "name": _slug(study.name, str(model)), "finding": ""}
    return fields


def _named(name: str) -> Study:
    """The study in a file or of a name; raises UsageError."""
    if not name.endswith(".toml"):
        return preset(name)
    study = read(Path(name))
    if study.name in PRESETS:
        raise UsageError(
            f"{name}: {study.name!r} is the name of a built-in study; rename the file, or set "
            "name = '...' in it"
        )
    return study


def plain(settings: Mapping[str, Any]) -> Settings:
    """Settings as a file would say them: no tuples, and lists where a command line has commas."""
    values: Settings = {}
    for key, value in settings.items():
        if isinstance(value, str) and key in ("hidden", *RANGES):
            value = value.split(",")
        values[key] = list(value) if isinstance(value, tuple | list) else value
        if key == "method_options":
            values[key] = {name: _scalar(str(option)) for name, option in value.items()}
    return values


def _narrowed(name: str, old: Factor | None, values: Factor) -> Factor:
    """The new values of a factor: of one with named bundles, those that were named."""
    if not isinstance(old, dict) or not isinstance(values, list):
        return values
    names = [label(value) for value in values]
    for bundle in names:
        if bundle not in old:
            raise unknown(f"value of {name}", bundle, old)
    return {bundle: old[bundle] for bundle in names}


def _slug(*parts: str) -> str:
    text = re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(parts)).strip("-")
    return text[:60] or "study"
