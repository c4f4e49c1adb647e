"""Names of models, and `@register` to add one; a builder's module is imported on demand.

Light: a mistyped model is answered before torch is imported.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stl10bench.core.errors import UsageError, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from torch import nn

    Builder = Callable[..., nn.Module]

TIMM = "timm:"  # the prefix of any timm backbone
_BACKBONES = {"mobilenetv2": "mobilenetv2_100"}  # names of our own -> timm's
_BUILT_IN = {
    "logistic": "stl10bench.models.mlp",
    "mlp": "stl10bench.models.mlp",
    "cnn": "stl10bench.models.cnn",
}
_registered: "dict[str, Builder]" = {}


def register(builder: "Builder") -> "Builder":
    """Register `builder(num_classes, image_size, *, ...options) -> nn.Module` by its own name.

    The module takes float images (N, 3, image_size, image_size) and returns logits
    (N, num_classes). The keyword-only parameters are the model's options: each needs a type and a
    default. Raises UsageError for a name that is taken (in a notebook, a new definition replaces
    the old one).
    """
    name, module = builder.__name__, builder.__module__
    taken = name in _registered and module != "__main__"  # where notebooks define
    # A built-in name may not have been imported yet, and is taken all the same.
    if taken or name in _BACKBONES or _BUILT_IN.get(name, module) != module:
        raise UsageError(f"a model named {name!r} is registered already: rename one of the two")
    _registered[name] = builder
    return builder


def load_plugin(module: str) -> None:
    """Import a module that registers models; the working folder is searched as well.

    Raises UsageError for a module that is not there, and whatever its own code raises.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.split(".")[0]):
            raise  # something that the plug-in itself imports is missing
        raise UsageError(f"no plugin module {module!r} in {here} or site-packages") from None


def names() -> list[str]:
    """All registered names, the built-in ones first; `timm:<name>` is not among them."""
    built_in = [*_BUILT_IN, *_BACKBONES]
    return built_in + sorted((_entry_points().names | _registered.keys()).difference(built_in))


def check_name(name: str) -> None:
    """Raise UsageError, with the nearest name, for a model that is not registered.

    What follows `timm:` is checked when timm is imported.
    """
    if name.startswith(TIMM):
        if name == TIMM:
            raise UsageError("'timm:' needs the name of a timm model, e.g. timm:resnet18")
    elif name not in _BUILT_IN and name not in names():  # which reads all packages' metadata
        raise unknown("model", name, names(), remedy="('stl10bench models' lists them)")


def backbone_name(name: str) -> str | None:
    """timm's name of a model's backbone; None for a model without one."""
    return name.removeprefix(TIMM) if name.startswith(TIMM) else _BACKBONES.get(name)


def load_builder(name: str) -> "Builder | None":
    """The builder of a registered name; None where its module or plug-in registers no such name."""
    if name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name])  # it imports `register` from here
    if name not in _registered:
        for entry in _entry_points().select(name=name):
            entry.load()
    return _registered.get(name)


def _entry_points() -> "EntryPoints":
    """The models of installed packages."""
    from importlib.metadata import entry_points  # 30 ms, for which `--help` does not wait

    return entry_points(group="stl10bench.models")
