"""Names of models, and `@register` to add one; a builder's module is imported on demand."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stl10bench.core.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import nn

    Builder = Callable[..., nn.Module]

TIMM = "timm:"  # the prefix of any timm backbone
_BACKBONES = {"mobilenetv2": "mobilenetv2_100"}
_BUILT_IN = {
    "logistic": "stl10bench.models.mlp",
    "mlp": "stl10bench.models.mlp",
    "cnn": "stl10bench.models.cnn",
    "mobilenetv2": "stl10bench.models.timm_backbone",
}
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
    elif name not in _BUILT_IN and name not in names():  # which reads all packages' metadata
        raise unknown("model", name, names(), remedy="('stl10bench models' lists them)")


def backbone_name(name: str) -> str | None:
    """timm's name of a model's backbone; None for a model that has none."""
    return name.removeprefix(TIMM) if name.startswith(TIMM) else _BACKBONES.get(name)


def registered(name: str) -> "Builder | None":
    """The builder of a name, whose module or plug-in is imported first; None where none registers.

    The modules are imported by their names, so that a builder may import this one.
    """
    if name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name])
    if name not in _registered:
        from importlib.metadata import entry_points

        for entry in entry_points(group="stl10bench.models", name=name):
            entry.load()
    return _registered.get(name)
