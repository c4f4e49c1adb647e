"""A program beside the tests that imports torch once and forks; asked by lines of JSON."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class Service:
    """The program `python -m helpers.NAME` of the module in which a subclass is written."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", type(self).__module__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._process.communicate()  # closes its input, which ends it and all that it started

    def ask(self, question: dict[str, Any]) -> Any:
        """The program's answer; paths become text."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question, default=str) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def prepare() -> None:
    """Import, once for all children, what most of them need; they time models in few passes."""
    import timm  # noqa: F401
    import torch

    from stl10bench.training import probe, row, trainer  # noqa: F401

    torch.set_num_threads(1)
    row._MOST_SECONDS = 0.0


def learn(modules: Iterable[str]) -> None:
    """Import what a child had to import, for all later children."""
    for name in set(modules) - set(sys.modules):
        with contextlib.suppress(ImportError):  # some are made, not imported
            importlib.import_module(name)
