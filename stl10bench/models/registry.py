"""Names of models, and `@register` to add one; a builder's module is imported on demand.

Light: a mistyped model is answered before torch is imported.
"""

import importlib
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING

from stl10bench.core.errors import BenchError, UsageError, cause, suggest, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import EntryPoints

    from torch import nn

    Builder = Callable[..., nn.Module]

TIMM = "timm:"  # the prefix of any timm backbone
_BACKBONES = {"mobilenetv2": "mobilenetv2_100"}  # names of our own -> timm's
_BUILT_IN = {
    "logistic": "stl10bench.models.mlp",
    "mlp": "stl10bench.models.mlp",
    "cnn": "stl10bench.models.cnn",
    "resnet9": "stl10bench.models.resnet9",
    "kmeans": "stl10bench.models.kmeans",
}
_registered: "dict[str, Builder]" = {}


def register(builder: "Builder") -> "Builder":
    """Register `builder(num_classes, image_size, *, ...options) -> nn.Module` by its own name.

    The module takes float images (N, 3, image_size, image_size) and returns logits
    (N, num_classes). The keyword-only parameters are the model's options: each needs a type and a
    default. A part of the module with a method `fit(images, *, seed)` learns by it, before the
    first step, from the training images without their labels and the unlabelled ones: `images`
    yields batches of the module's input, as often as it is gone through, `images.count` in all.

    Raises UsageError for a name that is taken (in a notebook, a new definition replaces the old
    one).
    """
    name, module = builder.__name__, builder.__module__
    taken = name in _registered and module != "__main__"  # where notebooks define
    # A built-in name may not have been imported yet, and is taken all the same.
    if taken or name in _BACKBONES or _BUILT_IN.get(name, module) != module:
        raise UsageError(f"a model named {name!r} is registered already: rename one of the two")
    _registered[name] = builder
    return builder


def find_plugin(plugin: str) -> str:
    """What --plugin means, from any folder: the absolute path of a file or package, or a module.

    `my_models` is my_models.py or the folder my_models (with an __init__.py) where one is there,
    else the module of that name.
    """
    return str(_plugin_path(plugin) or plugin)


def _plugin_path(plugin: str) -> Path | None:
    for name in (plugin, f"{plugin}.py"):
        path = Path(os.path.abspath(name))  # noqa: PTH100  without `..`, links as they are
        if (path.is_file() and path.suffix == ".py") or (path / "__init__.py").is_file():
            return path
    return None


def load_plugin(plugin: str) -> None:
    """Import what registers models: a file, a package folder, or a module by its name.

    The folder in which the file or package lies, for a module the working folder, is searched for
    what it imports. Raises UsageError for what is not there, and for code that fails.
    """
    path = _plugin_path(plugin)
    name, folder = plugin, Path.cwd()
    if path is not None:
        name, folder = path.name.removesuffix(".py"), path.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    missing = _missing_plugin(plugin, folder)
    if path is not None and "." in name:
        raise UsageError(
            f"--plugin {plugin}: Python cannot import a name with a dot ({name}): rename it"
        )
    if path is None and not all(map(str.isidentifier, name.split("."))):
        raise missing
    with _own_errors(f"--plugin {plugin}"):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise  # something that the plug-in itself imports is missing
            raise missing from None
    if path is not None and not Path(module.__file__ or "").is_relative_to(path):
        raise UsageError(
            f"--plugin {plugin}: another module has the name {name!r} "
            f"({module.__file__ or 'part of Python'}): rename the plugin"
        )


def _missing_plugin(plugin: str, folder: Path) -> UsageError:
    """The error for what is neither a file nor a module, with the nearest file that there is."""
    file = plugin if plugin.endswith(".py") else f"{plugin}.py"
    files = [str(path) for path in sorted(Path(file).parent.glob("*.py"))]
    if hint := suggest(str(Path(file)), files, otherwise=""):
        return UsageError(f"no plugin {plugin!r}: there is no file {file}: {hint}")
    return UsageError(
        f"no plugin {plugin!r}: there is no file {file}, no folder {plugin} with an __init__.py, "
        f"and no module {plugin} in {folder} or site-packages"
    )


@contextmanager
def _own_errors(plugin: str) -> "Iterator[None]":
    """Raise what a plug-in's own code raises, or its sys.exit(), as a UsageError with its place."""
    try:
        yield
    except BenchError:
        raise
    except (Exception, SystemExit) as error:
        ours = (__file__, importlib.__file__)  # a mistake of syntax has no frame but these
        frames = [frame for frame in extract_tb(error.__traceback__) if frame.filename not in ours]
        places = [f" ({x.filename}, line {x.lineno})" for x in frames if x.filename[:1] != "<"]
        raise UsageError(
            f"{plugin} cannot be imported: {cause(error)}{''.join(places[-1:])}; -v shows the "
            "traceback"
        ) from error


def names() -> list[str]:
    """All registered names, the built-in ones first; `timm:<name>` is not among them."""
    built_in = [*_BUILT_IN, *_BACKBONES]
    return built_in + sorted((_entry_points().names | _registered.keys()).difference(built_in))


def check_name(name: str) -> None:
    """Raise UsageError, with the nearest name, for a model that is not registered.

    What follows `timm:` is checked when timm is imported.
    """
    if name.startswith("hf-hub:"):
        raise UsageError(
            f"model {name}: only 'train' and 'lr-find' take models of the hub; pass the "
            f"architecture, timm:NAME, with --weights {name}"
        )
    if name.startswith(TIMM):
        if name == TIMM:
            raise UsageError("'timm:' needs the name of a timm model, e.g. timm:resnet18")
    elif name not in _BUILT_IN and name not in names():  # which reads all packages' metadata
        raise _unknown_model(name)


def _unknown_model(name: str) -> UsageError:
    """The error for a name that is not registered.

    timm, slow to import, is asked where nothing of ours is near, or for a number in the name.
    """
    remedy = "('stl10bench models' lists them; --plugin FILE adds your own)"
    error = unknown("model", name, names(), remedy=remedy)
    if "did you mean" not in str(error) or any(map(str.isdigit, name)):
        import timm

        if timm.is_model(name):
            return UsageError(f"unknown model {name!r}: did you mean '{TIMM}{name}'?")
    return error


def backbone_name(name: str) -> str | None:
    """timm's name of a model's backbone; None for a model without one."""
    return name.removeprefix(TIMM) if name.startswith(TIMM) else _BACKBONES.get(name)


def load_builder(name: str) -> "Builder | None":
    """The builder of a registered name; None where its module or plug-in registers no such name."""
    if name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name])  # it imports `register` from here
    if name not in _registered:
        for entry in _entry_points().select(name=name):
            with _own_errors(f"the plugin {entry.value!r} of model {name!r}"):
                entry.load()
    return _registered.get(name)


def _entry_points() -> "EntryPoints":
    """The models of installed packages."""
    from importlib.metadata import entry_points  # 30 ms, for which `--help` does not wait

    return entry_points(group="stl10bench.models")
