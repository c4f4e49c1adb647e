"""Options, --set, a file of settings and the environment -> the keywords of `train`."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError

from stl10bench.cli.options import TRAINING, VARIABLES, load_plugin
from stl10bench.config import DERIVED, RANGES, Limits, RunConfig, check_values
from stl10bench.core import files
from stl10bench.core.errors import UsageError, suggest
from stl10bench.models import registry
from stl10bench.models.factory import model_options
from stl10bench.models.hub_files import HUB
from stl10bench.models.methods import METHODS, SUPERVISED, NoOptions
from stl10bench.training.job import Job

_SCHEMA = "'stl10bench config schema' lists all settings"
_CARRIERS = {"config", "set", "model_option", "method_option"}  # options that hold settings
_OF_MODELS = {"freeze", "hidden", "dropout"}  # their options that have an option of ours
# What `train` knows by name; all else is an option of the model or of the method.
KNOWN = RunConfig.model_fields.keys() | TRAINING.keys() - _CARRIERS - _OF_MODELS
KNOWN -= {"data", "data_size"}


class Setting(NamedTuple):
    """A value and, in a user's words, where it comes from."""

    value: Any
    source: str


def settings(
    context: typer.Context, options: Mapping[str, Any], models: Iterable[str]
) -> dict[str, Any]:
    """The keywords of `train` that a command's options, --set, --config and the environment say.

    An option beats --set, which beats the file, which beats the environment. `model` is among them
    if the file or --set names it. Raises what `collect` raises.
    """
    return as_keywords(collect(context, options, models))


def collect(
    context: typer.Context, options: Mapping[str, Any], models: Iterable[str]
) -> dict[str, Setting]:
    """Each setting with its source; those of models and methods as `model_options.NAME`.

    Unset ones are left out. Raises UsageError, with the source, for settings that no model has, for
    values that cannot be, for those of another model than `models`, and for weights that are
    named by content alone.
    """
    layers = list(_layers(context, options))
    method = SUPERVISED
    for layer in layers:
        method = layer["method"].value if "method" in layer else method
    collected: dict[str, Setting] = {}
    for layer in layers:
        layer = dict(_filed(layer, str(method)))
        if "weights" in layer:  # they are one choice: random, from a file, or timm's
            collected.pop("pretrained", None)
        elif "pretrained" in layer and not layer["pretrained"].value:
            collected.pop("weights", None)
        collected |= layer
    if plugin := collected.get("plugin"):
        load_plugin(plugin.value)
    models = _models(collected, list(models))
    if models:  # a study knows its own
        _check_names(collected, models)
    _check_weights(collected, models)
    return collected


def as_keywords(collected: Mapping[str, Setting]) -> dict[str, Any]:
    """What `collect` found as keywords of `train`."""
    keywords: dict[str, Any] = {}
    for key, setting in collected.items():
        kind, _, name = key.rpartition(".")
        # A plug-in may give an option the name of a setting.
        if kind == "method_options" or (kind and name in RunConfig.model_fields):
            keywords.setdefault(kind, {})[name] = setting.value
        else:
            keywords[name] = setting.value
    return keywords


def run_settings(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `train`'s keywords that decide a run's numbers, a model's options included."""
    decisive = RunConfig.model_fields.keys() - set(DERIVED) | _OF_MODELS
    return {key: value for key, value in keywords.items() if key not in TRAINING.keys() - decisive}


def key_values(option: str, pairs: list[str] | None) -> dict[str, str]:
    """The pairs of an option such as --set; raises UsageError for one that is none."""
    for pair in pairs or []:
        if "=" not in pair:
            raise UsageError(f"{option} {pair}: must be KEY=VALUE, e.g. dropout=0.5")
    return dict(pair.split("=", 1) for pair in pairs or [])


def _layers(context: typer.Context, options: Mapping[str, Any]) -> Iterator[dict[str, Setting]]:
    """What says the settings, the weakest first."""
    parameters: dict[str, Any] = {option.name: option for option in context.command.params}
    layers: dict[str, dict[str, Setting]] = {"DEFAULT": {}, "ENVIRONMENT": {}, "COMMANDLINE": {}}
    for key, value in options.items():
        source = context.get_parameter_source(key)
        if value is not None and source is not None and key not in _CARRIERS:
            option = parameters[key]
            names = (value is False and option.secondary_opts) or option.opts
            words = {"DEFAULT": "default", "ENVIRONMENT": option.envvar, "COMMANDLINE": names[0]}
            layers[source.name][key] = Setting(value, words[source.name])
    for name in ("model", "method"):
        pairs = key_values(f"--{name}-option", options.get(f"{name}_option"))
        if pairs:
            layers["COMMANDLINE"][f"{name}_options"] = Setting(pairs, f"--{name}-option")
    yield layers["DEFAULT"]
    yield layers["ENVIRONMENT"]
    if path := options.get("config"):
        yield read_file(path)
    yield _sourced(key_values("--set", options.get("set")), "--set")
    yield layers["COMMANDLINE"]


def read_file(path: Path) -> dict[str, Setting]:
    """The settings in a TOML or JSON file, or in a run's config.json; raises UsageError.

    The data are those of --dataset, whatever a run's config says.
    """
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        raise UsageError(f"{path}: settings are read from TOML or JSON, not YAML: convert the file")
    read = files.read_toml if suffix == ".toml" else files.read_json
    values = {key.replace("-", "_"): value for key, value in read(path, UsageError).items()}
    if re.fullmatch("([0-9a-f]{64})?", str(values.get("data", "-"))):
        del values["data"]
    values.pop("data_size", None)
    start = values.get("weights")
    if start == RunConfig.model_fields["weights"].default:
        values |= {"weights": None, "pretrained": False}
    elif str(start).startswith("hub:"):  # where timm's weights are
        values["weights"] = None
    return _sourced(values, str(path))


def _sourced(values: Mapping[str, Any], source: str) -> dict[str, Setting]:
    """Values that did not come through options, checked one by one."""
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for name in ("model_options", "method_options"):
        if not isinstance(values.get(name, {}), dict):
            raise UsageError(f"{source}: {name} must be an object, e.g. {{}}")
    if "pretrained" in values:
        try:
            values["pretrained"] = TypeAdapter(bool).validate_python(values["pretrained"])
        except ValidationError:
            text = f"pretrained = {values['pretrained']!r:.80}: must be true or false"
            raise UsageError(f"{source}: {text}") from None
    texts = {name for name in RANGES if isinstance(values.get(name), str)}  # LOW,HIGH
    for model in (RunConfig, Limits, Job):
        names = values.keys() & model.model_fields.keys() & KNOWN - {"weights", *texts}
        check_values(model, {name: values[name] for name in names}, source)
        values |= {name: _typed(model, name, values[name]) for name in names}
    if values.get("recipe", "") is None:  # as in a job: none of its own
        del values["recipe"]
    return {key: Setting(value, source) for key, value in values.items()}


def _typed(model: type[BaseModel], name: str, value: Any) -> Any:
    """A value that the field can have, as the field's type where it is text."""
    if not isinstance(value, str):
        return value
    kind: Any = model.model_fields[name].annotation
    return TypeAdapter(kind).validate_python(value)


def _filed(layer: Mapping[str, Setting], method: str) -> Iterator[tuple[str, Setting]]:
    """The settings of a layer by the names that all layers share."""
    of_method = METHODS.get(method, NoOptions).model_fields
    for key, (value, source) in layer.items():
        if key in ("model_options", "method_options"):
            yield from ((f"{key}.{name}", Setting(each, source)) for name, each in value.items())
        elif key in RANGES and isinstance(value, str):
            parts = tuple(value.split(","))
            if len(parts) != 2:
                raise UsageError(f"{key} = {value}: must be LOW,HIGH, e.g. 0,20")
            yield key, Setting(parts, source)
        elif key in KNOWN:
            yield key, Setting(value, source)
        else:
            kind = "method" if key in of_method else "model"
            yield f"{kind}_options.{key}", Setting(value, source)


def _models(collected: Mapping[str, Setting], models: list[str]) -> list[str]:
    """The models that a command names, or else a file; raises UsageError for two answers."""
    if "model" not in collected:
        return models
    model, source = collected["model"]
    if others := [name for name in models if name != model]:
        remedy = "remove model and model_options from a copy of the file"
        remedy = "leave out --set model" if source == "--set" else remedy
        raise UsageError(
            f"{source} contains the settings of {model}, not of {others[0]}: name {model}, or "
            f"{remedy}"
        )
    return [model]


def _check_names(collected: Mapping[str, Setting], models: Sequence[str]) -> None:
    """Raise UsageError for a name in a file or in --set that is no setting of the models."""
    named = {
        key.rpartition(".")[2]: setting
        for key, setting in collected.items()
        if key.startswith("model_options.")
        if setting.source == "--set" or not setting.source.startswith("--")
    }
    if not named or any(model.startswith(HUB) for model in models):  # which must be asked first
        return
    having = {name for model in models for name in model_options(model)}
    for name, (value, source) in named.items():
        if name not in having:
            methods = [method for method in METHODS if name in METHODS[method].model_fields]
            hint = suggest(name, sorted(KNOWN | having), otherwise=_SCHEMA)
            hint = f"it needs method = {methods[0]!r}" if methods else hint
            raise UsageError(f"{source}: unknown setting {name} = {value!r:.80}: {hint}")


def _check_weights(collected: dict[str, Setting], models: Iterable[str]) -> None:
    """Leave out weights that are for other models, and raise UsageError for a bare checksum."""
    if "weights" not in collected:
        return
    value, source = collected["weights"]
    if str(value).startswith("sha256:"):
        raise UsageError(f"{source}: its run starts from weights {value}: pass --weights FILE")
    # The variable is for all runs in a shell, those of models without a backbone among them.
    if source in VARIABLES.values() and models and not any(map(registry.backbone_name, models)):
        del collected["weights"]
