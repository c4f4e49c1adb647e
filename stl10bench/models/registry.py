"""Names -> builders of models; light: a builder's module is imported when it is asked for."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stl10bench.config import RunConfig
from stl10bench.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import nn

    Builder = Callable[..., nn.Module]

TIMM = "timm:"  # the prefix of any timm backbone
_BACKBONES = {"mobilenetv2": "mobilenetv2_100"}
_BUILT_IN = {
    "logistic": "stl10bench.models.logistic",
    "mlp": "stl10bench.models.mlp",
    "cnn": "stl10bench.models.cnn",
    "mobilenetv2": "stl10bench.models.backbone",
}
_PARTS = 1000  # of a list among a model's options, e.g. layers
_registered: "dict[str, Builder]" = {}


def register(builder: "Builder") -> "Builder":
    """Register `builder(num_classes, image_size, *, ...options) -> nn.Module` by its own name.

    The module takes float images (N, 3, image_size, image_size) and returns logits
    (N, num_classes). The keyword-only parameters are the model's options: each needs a type and a
    default. Raises UsageError for a name that is taken (in a notebook, a new definition replaces
    the old one).
    """
    name = builder.__name__
    home = _BUILT_IN.get(name, builder.__module__)
    again = name in _registered and builder.__module__ != "__main__"
    if again or home != builder.__module__:
        raise UsageError(f"a model named {name!r} is registered already: rename one of the two")
    _registered[name] = builder
    return builder


def load_plugin(module: str) -> None:
    """Import a module that registers models; the working folder is searched as well."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0] and error.name != module:
            raise
        raise UsageError(
            f"no plugin module {module!r} in {here} or among the installed packages"
        ) from None


def names() -> list[str]:
    """All registered names, the built-in ones first (`timm:<name>` not among them)."""
    from importlib.metadata import entry_points

    plugins = {entry.name for entry in entry_points(group="stl10bench.models")}
    return [*_BUILT_IN, *sorted((plugins | _registered.keys()) - _BUILT_IN.keys())]


def check_name(name: str) -> None:
    """Raise UsageError, with the nearest name, for a model that is not registered; light."""
    if name.startswith(TIMM):
        if name == TIMM:
            raise UsageError("'timm:' needs the name of a timm model, e.g. timm:resnet18")
    elif name not in names():
        raise unknown("model", name, names(), remedy="('stl10bench models' lists them)")


def backbone(name: str) -> str | None:
    """timm's name of a model's backbone; None for a model that has none."""
    return name.removeprefix(TIMM) if name.startswith(TIMM) else _BACKBONES.get(name)


def get(name: str) -> "Builder":
    """The builder of a model; raises UsageError as `check_name` does."""
    check_name(name)
    if name.startswith(TIMM):
        from stl10bench.models.backbone import timm_model

        return partial(timm_model, name.removeprefix(TIMM))
    if name not in _registered:
        if name in _BUILT_IN:
            importlib.import_module(_BUILT_IN[name])
        else:
            from importlib.metadata import entry_points

            for entry in entry_points(group="stl10bench.models", name=name):
                entry.load()
    if name not in _registered:
        raise UsageError(f"the plugin of model {name!r} does not @register a function {name!r}")
    return _registered[name]


def options(name: str) -> dict[str, inspect.Parameter]:
    """The options of a model: its builder's keyword-only parameters."""
    parameters = inspect.signature(get(name)).parameters
    return {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def check_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, as strings or values, in the types of the builder's parameters; all filled in.

    Lists may be written with commas. Raises UsageError for an option that the model does not
    have or a value that does not fit.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    known = options(name)
    for key in given:
        if key not in known:
            near = get_close_matches(key, [*known, *RunConfig.model_fields], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known) or 'none'}"
            raise UsageError(f"model {name!r} has no option {key!r}: {hint}")
    fields: dict[str, Any] = {key: (p.annotation, p.default) for key, p in known.items()}
    schema = create_model("Options", __config__=ConfigDict(extra="forbid"), **fields)
    values = {
        key: _split(value) if "tuple" in str(known[key].annotation) else value
        for key, value in given.items()
    }
    for key, value in values.items():
        if isinstance(value, list | tuple) and len(value) > _PARTS:
            raise UsageError(
                f"option {key} of model {name!r}: {len(value)} parts, at most {_PARTS}"
            )
    try:
        checked: dict[str, Any] = schema.model_validate(values).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"option {first['loc'][0]} = {first['input']!r:.80} of model {name!r}: {first['msg']}"
        ) from None
    return checked


def check_freeze(value: Any) -> bool:
    """The option `freeze` of a backbone, as a boolean or as a word for one."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        raise UsageError(f"option freeze = {value!r}: must be true or false") from None


def changed_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked options that differ from the builder's defaults: what a config stores."""
    defaults = check_options(name, {})
    checked = check_options(name, given)
    return {key: value for key, value in checked.items() if value != defaults[key]}


def build(name: str, num_classes: int, image_size: int, given: Mapping[str, Any]) -> "nn.Module":
    """A model with random weights; raises UsageError for unknown names, options and sizes."""
    return get(name)(num_classes, image_size, **check_options(name, given))


def _split(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value
