"""Shows the settings of a run and where each comes from, and the schema of a file of settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich import box
from rich.markup import escape
from rich.table import Table

from stl10bench.cli.options import JSON, MODEL, PLUGIN, TRAINING, load_plugin, with_options
from stl10bench.cli.settings import KNOWN, Setting, as_keywords, collect
from stl10bench.config import RECIPES, Limits, RunConfig
from stl10bench.core.console import clean, stdout
from stl10bench.core.errors import UsageError
from stl10bench.models import registry
from stl10bench.models.factory import check_options, model_options
from stl10bench.models.methods import METHODS, method_options
from stl10bench.models.pretrained import find_weights
from stl10bench.training.job import OPTIONS, Job, make_job
from stl10bench.training.resolve import base_settings, check_settings, is_frozen

app = typer.Typer(no_args_is_help=True)

_OF_DATA = {"data", "data_size"}  # in the config of a run
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


@app.command()
@with_options(TRAINING, JSON)
def show(
    context: typer.Context,
    model: Annotated[str | None, MODEL] = None,
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the settings that `train` would use, and where each comes from.

    An option beats --set, which beats the file of --config,
    which beats an environment variable, which beats the recipe,
    which beats the default. Reads no data and trains nothing.

    Examples:
    stl10bench config show cnn --epochs 5
    stl10bench config show mlp --set dropout=0.1 --json
    """
    collected = collect(context, options, [model] if model else [])
    settings = _resolved(model, collected)
    if as_json:
        shown = {key: setting._asdict() for key, setting in settings.items()}
        typer.echo(json.dumps({"settings": shown}))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("setting", "value", "from"):
        table.add_column(title)
    for key, (value, source) in settings.items():
        text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
        style = "dim" if source == "default" else None
        table.add_row(*(escape(clean(cell)) for cell in (key, text, source)), style=style)
    stdout().print(table)


def _resolved(model: str | None, collected: Mapping[str, Setting]) -> dict[str, Setting]:
    """Every setting of a run, with its source; raises what `train` would raise for them."""
    keywords = as_keywords(collected)
    model = keywords.pop("model", model)
    if model is None:
        raise UsageError("Missing model: 'stl10bench models' lists them")
    recipe, pretrained = keywords.pop("recipe"), keywords.pop("pretrained", True)
    limits = {key: keywords.pop(key) for key in Limits.model_fields if key in keywords}
    how = {key: keywords.pop(key) for key in OPTIONS if key in keywords}
    if (file := keywords.pop("weights", None)) is not None:
        file = find_weights(file, Path(how["runs_dir"]))
    config, start = check_settings(
        model, recipe=recipe, weights=file, pretrained=pretrained, settings=keywords
    )
    job = make_job(config, limits=limits, recipe=recipe, **how).model_dump(mode="json")
    values = {"model": model, "recipe": recipe, **job.pop("config"), **job.pop("limits"), **job}
    values |= {"weights": start.source, **check_options(model, config.model_options)}
    values |= method_options(config).model_dump()
    sources = {"model": "argument"}
    base = base_settings(model, recipe, keywords, frozen=is_frozen(config))
    for key in [*base, *base.get("model_options", {})]:
        sources[key] = f"recipe {recipe}"
    for key in ("labels_per_class", "fold"):
        if base.get("val_fraction") == 0 and getattr(config, key) is not None:
            sources["val_fraction"] = key
    sources |= {key.rpartition(".")[2]: setting.source for key, setting in collected.items()}
    if not pretrained:
        sources["weights"] = sources["pretrained"]
    return {
        key: Setting(value, sources.get(key, "default"))
        for key, value in values.items()
        if key not in _OF_DATA | {"model_options", "method_options"}
    }


@app.command()
@with_options(PLUGIN, JSON)
def schema(*, plugin: str | None, as_json: bool) -> None:
    """Print the JSON schema of a file of settings, for editors.

    It has the options of all registered models; with --json it is
    one line.

    Examples:
    stl10bench config schema
    """
    load_plugin(plugin)
    typer.echo(json.dumps(settings_schema(), indent=None if as_json else 2))


def settings_schema() -> dict[str, Any]:
    """The JSON schema of what `train --config` takes."""
    properties: dict[str, Any] = {}
    for name in registry.names():
        for key, parameter in model_options(name).items():
            kind = TypeAdapter(parameter.annotation).json_schema()
            _add(properties, key, kind, f"Option of {name}.")
    for method, options in METHODS.items():
        for key, described in options.model_json_schema()["properties"].items():
            _add(properties, key, described, f"{described['description']} ({method})")
    for model in (RunConfig, Limits, Job):
        described = model.model_json_schema()["properties"]
        properties |= {key: described[key] for key in described if key in KNOWN | _OF_DATA}
    properties["recipe"] = {"enum": list(RECIPES), "description": "Recipe of settings."}
    text = "Whether a backbone starts from pretrained weights."
    properties["pretrained"] = {"type": "boolean", "description": text}
    for described in properties.values():
        described.pop("title", None)
    return {
        "$schema": _DRAFT,
        "title": "Settings of stl10bench train",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _add(properties: dict[str, Any], key: str, kind: Mapping[str, Any], text: str) -> None:
    """Add an option; of one that several models or methods have, what each of them takes."""
    kind = {name: value for name, value in kind.items() if name not in ("title", "description")}
    known = properties.pop(key, {})
    texts = [known.pop("description", ""), text]
    kinds = known.get("anyOf", [known] if known else [])
    kinds += [kind] if kind not in kinds else []
    shared = {"anyOf": kinds} if len(kinds) > 1 else kind
    properties[key] = {**shared, "description": " ".join(filter(None, texts))}
