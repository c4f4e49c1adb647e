"""Train and compare image classifiers on STL-10."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["evaluate", "export", "load", "register", "train", "train_stack"]

if TYPE_CHECKING:
    from stl10bench.api import evaluate, train, train_stack
    from stl10bench.exports.exporting import export
    from stl10bench.models.registry import register
    from stl10bench.predict import load

_HOMES = {
    "evaluate": "stl10bench.api",
    "export": "stl10bench.exports.exporting",
    "load": "stl10bench.predict",
    "register": "stl10bench.models.registry",
    "train": "stl10bench.api",
    "train_stack": "stl10bench.api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that `import stl10bench` stays light."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'stl10bench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
