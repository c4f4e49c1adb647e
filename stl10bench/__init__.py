"""Train and compare image classifiers on STL-10."""

from typing import TYPE_CHECKING, Any

from stl10bench.core import __version__

__all__ = ["__version__", "evaluate", "export", "load", "pretrain", "register", "train"]

if TYPE_CHECKING:
    from stl10bench.inference.evaluate import evaluate
    from stl10bench.inference.export import export
    from stl10bench.inference.predictor import load
    from stl10bench.models.registry import register
    from stl10bench.training.run import pretrain, train

_HOMES = {
    "evaluate": "stl10bench.inference.evaluate",
    "export": "stl10bench.inference.export",
    "load": "stl10bench.inference.predictor",
    "pretrain": "stl10bench.training.run",
    "register": "stl10bench.models.registry",
    "train": "stl10bench.training.run",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that `import stl10bench` stays light."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'stl10bench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
