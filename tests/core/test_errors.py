"""Errors: what they suggest, what they name as their cause, and the extras that they ask for."""

import pickle
import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

import stl10bench
from stl10bench.core.errors import (
    BenchError,
    DivergedError,
    InterruptedRunError,
    UsageError,
    cause,
    suggest,
)


@pytest.mark.parametrize(
    "error",
    [UsageError("no"), DivergedError("up", step=3), InterruptedRunError("asked to stop", 143)],
)
def test_an_error_comes_back_from_another_process_as_it_was(error: BenchError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize(
    ("name", "names", "suggestion"),
    [
        ("learning_rate", ["lr", "epochs"], "lr"),
        ("--learning-rate", ["--lr", "--epochs"], "--lr"),
        ("--bs", ["--batch-size", "--seeds"], "--batch-size"),
        ("wd", ["weight_decay"], "weight_decay"),
        ("random_state", ["seed"], "seed"),
        ("MLP", ["mlp", "cnn"], "mlp"),
        ("seed", ["seed", "seeds"], "seed"),
        ("learning_rate", ["learning_rates", "epochs"], "learning_rates"),
        ("learning_rate", ["epochs"], None),
        ("zzz", ["lr"], None),
    ],
)
def test_what_is_meant_is_suggested_by_other_frameworks_names_and_by_letters(
    name: str, names: list[str], suggestion: str | None
) -> None:
    expected = f"did you mean {suggestion!r}?" if suggestion else "nothing"
    assert suggest(name, names, otherwise="nothing") == expected


def test_the_cause_is_the_innermost_one_without_colours() -> None:
    outer = RuntimeError("Next steps: [...]")
    outer.__cause__ = LookupError("\x1b[96mno such operator\x1b[0m\nand a page more")
    assert cause(outer) == "LookupError: no such operator"
    assert cause(ValueError("\x1b[31mred\x1b[0m\nmore")) == "ValueError: red"
    assert cause(AssertionError()) == "AssertionError"


def test_every_extra_that_a_message_tells_to_install_exists() -> None:
    text = "".join(path.read_text() for path in Path(stl10bench.__file__).parent.rglob("*.py"))
    asked = set(re.findall(r"stl10bench\[(\w+)\]", text))
    asked |= set(re.findall(r"extra=\"(\w+)\", purpose", text))
    assert asked
    assert asked <= set(metadata("stl10bench").get_all("Provides-Extra", []))
