"""Rows -> the commands that train their runs again; light."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from stl10bench import recipes
from stl10bench.config import MADE, RunConfig, make_config
from stl10bench.errors import UsageError
from stl10bench.escaping import clean
from stl10bench.tables.rows import Row


def reproducing(rows: Sequence[Row]) -> str:
    """The shell lines that train the rows' runs again, each comment once for those after it."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        comments, command = _command(row)
        lines.setdefault("\n".join(comments), []).append(command)
    return "\n".join(
        part for comments, commands in lines.items() for part in (comments, *commands) if part
    )


def _command(row: Row) -> tuple[list[str], str]:
    """Comments on what a command cannot hold, and the command.

    FILE and DIR stand for the weights and the data, which a row knows by their sums alone. The
    recipe is the one that leaves the fewest options to give.
    """
    try:
        config = make_config(row["config"])
    except UsageError as error:
        return [], f"# no command: its settings are not those of this version: {clean(str(error))}"
    model = clean(config.model)
    options = row["model_options"]
    recipe, given = min(
        ((name, _options(config, name, options)) for name in _recipes_default_first()),
        key=lambda pair: len(pair[1]),
    )
    words = [*_program(row), "train", model]
    words += [] if recipe == recipes.DEFAULT else ["--recipe", recipe]
    words += _model_options(options) + given + _where(row, config) + _machine(row)
    return _comments(row, config), _joined(words)


def _recipes_default_first() -> list[str]:
    return sorted(recipes.RECIPES, key=lambda name: name != recipes.DEFAULT)


def _options(config: RunConfig, recipe: str, options: Mapping[str, Any]) -> list[str]:
    """The settings that neither the recipe nor a default gives."""
    frozen = bool(options["freeze"]) if "freeze" in options else None
    base = {
        key: value
        for key, value in recipes.settings(recipe, config.model, frozen=frozen).items()
        if key != "model_options"
    }
    if config.fold is not None:
        base["val_fraction"] = 0.0
    start = make_config({**base, "model": config.model})
    words = []
    for key in RunConfig.model_fields:
        value = getattr(config, key)
        if key in MADE or (value == getattr(start, key) and key != "seed"):
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words.append(f"--{key.replace('_', '-')}{'=' if text.startswith('-') else ' '}{text}")
    return [part for word in words for part in word.split(" ", 1)]


def _model_options(options: Mapping[str, Any]) -> list[str]:
    words = []
    for key, value in options.items():
        text = clean(",".join(map(str, value)) if isinstance(value, list) else str(value))
        if key == "freeze":
            words.append("--freeze" if value else "--no-freeze")
        elif key in ("hidden", "dropout"):
            words += [f"--{key}", text]
        elif value is not None:
            words += ["--model-option", f"{clean(key)}={text}"]
    return words


def _where(row: Row, config: RunConfig) -> list[str]:
    words = ["--dataset", "demo"] if row["dataset"] == "demo" else []
    words += ["--data-dir", "DIR"] if row["dataset"] not in ("demo", "STL-10") else []
    if config.weights.startswith("sha256:"):
        return [*words, "--weights", "FILE"]
    backbone = "freeze" in row["model_options"]
    return [*words, "--no-pretrained"] if backbone and config.weights == "none" else words


def _machine(row: Row) -> list[str]:
    device = row.get("device")
    words = []
    if isinstance(device, str):
        words += ["--device", device if device in ("cpu", "mps") else "cuda"]
    if isinstance(row.get("threads"), int):
        words += ["--threads", str(row["threads"])]
    return words + (["--deterministic"] if row.get("deterministic") is True else [])


def _program(row: Row) -> list[str]:
    processes = row.get("processes", 1)
    if isinstance(processes, int) and processes > 1:
        return ["torchrun", "--nproc_per_node", str(processes), "-m", "stl10bench"]
    return ["stl10bench"]


def _comments(row: Row, config: RunConfig) -> list[str]:
    lines = []
    if commit := row.get("commit"):
        changed = ", with changed files" if row.get("dirty") else ""
        lines.append(f"# at commit {clean(str(commit))}{changed}")
    if "DIR" in _where(row, config):
        lines.append(f"# DIR: data with the fingerprint {config.data}")
    if config.weights.startswith("sha256:"):
        lines.append(f"# FILE: weights with the sha256 {clean(config.weights[7:])}")
    elif config.weights.startswith("hub:"):
        lines.append(f"# begins from {clean(config.weights)}")
    if row.get("stacked", 1) > 1:
        lines.append(
            f"# it was one of {row['stacked']} trained at once by stl10bench.train_stack, and is "
            "the same up to rounding when trained alone"
        )
    return lines


def _joined(words: list[str]) -> str:
    return " ".join(word if word in ("DIR", "FILE") else shlex.quote(word) for word in words)
