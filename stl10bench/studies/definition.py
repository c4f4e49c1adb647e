"""A name or a file, and what a command line says beside it -> the study that is meant; light."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stl10bench.errors import UsageError, unknown
from stl10bench.studies import catalogue, studyfile
from stl10bench.studies.study import Factor, Settings, Study, label


def define(
    name: str | None,
    *,
    model: str | None,
    recipe: str | None,
    vary: Sequence[str],
    seeds: int | None,
    settings: Mapping[str, Any],
    stored: Study | None = None,
) -> Study:
    """A study by its name, from a TOML file (`name` ends in .toml), or of `model` and `vary`.

    `stored` is the one of that name that has run, for a name that is not one of ours.

    Each of the others beats what the study says of it. A factor that it has gets other values, of
    a factor with named bundles those named; another one is varied as well. Raises UsageError.
    """
    given: dict[str, Factor] = {}
    for text in vary:
        factor, values = studyfile.vary(text)
        if factor in given:
            raise UsageError(f"--vary {text}: {factor} is varied twice; give all values in one")
        given[factor] = values
    if name is None:
        if not model or not given:
            raise UsageError(
                "study what? Name one ('stl10bench study list' lists them), a .toml file, or give "
                "--model MODEL --vary NAME=VALUE,VALUE"
            )
        study: dict[str, Any] = {"name": _slug(model, "by", *given), "model": model, "vary": given}
    else:
        found = stored or _found(name)
        study = {key: getattr(found, key) for key in found.model_fields_set}
        vary_all: dict[str, Factor] = dict(found.vary)
        for factor, values in given.items():
            vary_all[factor] = _narrowed(factor, found.vary.get(factor), values)
        study["vary"] = vary_all
        other_model = model is not None and model != found.model
        if other_model or len(vary_all) > len(found.vary):
            study["about"] = ""
        if other_model or len(vary_all) > len(found.vary) or recipe not in (None, found.recipe):
            study |= {"finding": "", "best": {}}  # of another study than the report's
        if other_model:
            study |= {"model": model, "name": _slug(found.name, str(model))}
    study["settings"] = {**study.get("settings", {}), **plain(settings)}
    if recipe is not None:
        study["recipe"] = recipe
    if seeds is not None:
        study["seeds"] = seeds
    try:
        return Study.model_validate(study)
    except ValidationError as error:
        where, why = studyfile.explain(error)
        raise UsageError(f"study {study['name']}: {'.'.join(where)}: {why}") from None


def _found(name: str) -> Study:
    """The study in a file or of a name; raises UsageError."""
    if not name.endswith(".toml"):
        return catalogue.get(name)
    found = studyfile.read(Path(name))
    if found.name in catalogue.NAMES:
        raise UsageError(
            f"{name}: {found.name!r} is the name of another study; rename the file, or say "
            "name = '...' in it"
        )
    return found


def plain(settings: Mapping[str, Any]) -> Settings:
    """Settings as a file would say them: no tuples, and lists where a command line has commas."""
    found: Settings = {}
    for key, value in settings.items():
        if isinstance(value, str) and key in ("hidden", "rotation"):
            value = value.split(",")
        found[key] = list(value) if isinstance(value, tuple | list) else value
    return found


def _narrowed(name: str, old: Factor | None, values: Factor) -> Factor:
    """The new values of a factor: of one with named bundles, those that were named."""
    if not isinstance(old, dict) or not isinstance(values, list):
        return values
    names = [label(value) for value in values]
    for one in names:
        if one not in old:
            raise unknown(f"value of {name}", one, old)
    return {one: old[one] for one in names}


def _slug(*parts: str) -> str:
    text = re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(parts)).strip("-")
    return text[:60] or "study"
