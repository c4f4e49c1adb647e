"""Rows -> how to train each again, and the machines that made them."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from stl10bench.config import (
    DEFAULT_RECIPE,
    DERIVED,
    RECIPES,
    RunConfig,
    make_config,
    recipe_settings,
)
from stl10bench.core.console import clean
from stl10bench.core.errors import UsageError
from stl10bench.report.document import Cell, Code, Details, Section, Table, Text
from stl10bench.report.load import Part, Setting
from stl10bench.results import columns
from stl10bench.results.rows import Row


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
        config = make_config(row.config)
    except UsageError as error:
        return [], f"# no command: its settings are not those of this version: {clean(str(error))}"
    model = clean(config.model)
    options = row.model_options
    recipe, given = min(
        ((name, _options(config, name, options)) for name in _recipes_default_first()),
        key=lambda pair: len(pair[1]),
    )
    words = [*_program(row), "train", model]
    words += [] if recipe == DEFAULT_RECIPE else ["--recipe", recipe]
    words += _model_options(options) + given + _where(row, config) + _machine(row)
    return _comments(row, config), _joined(words)


def _recipes_default_first() -> list[str]:
    return sorted(RECIPES, key=lambda name: name != DEFAULT_RECIPE)


def _options(config: RunConfig, recipe: str, options: Mapping[str, Any]) -> list[str]:
    """The settings that neither the recipe nor a default gives."""
    frozen = bool(options["freeze"]) if "freeze" in options else None
    base = {
        key: value
        for key, value in recipe_settings(recipe, config.model, frozen=frozen).items()
        if key != "model_options"
    }
    if config.fold is not None:
        base["val_fraction"] = 0.0
    start = make_config({**base, "model": config.model})
    words = []
    for key in RunConfig.model_fields:
        value = getattr(config, key)
        if key in DERIVED or (value == getattr(start, key) and key != "seed"):
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
    words = ["--dataset", "demo"] if row.dataset == "demo" else []
    words += ["--data-dir", "DIR"] if row.dataset not in ("demo", "STL-10") else []
    if config.weights.startswith("sha256:"):
        return [*words, "--weights", "FILE"]
    backbone = "freeze" in row.model_options
    return [*words, "--no-pretrained"] if backbone and config.weights == "none" else words


def _machine(row: Row) -> list[str]:
    device = row.device
    words = []
    if isinstance(device, str):
        words += ["--device", device if device in ("cpu", "mps") else "cuda"]
    if isinstance(row.threads, int):
        words += ["--threads", str(row.threads)]
    return words + (["--deterministic"] if row.deterministic is True else [])


def _program(row: Row) -> list[str]:
    processes = row.processes
    if isinstance(processes, int) and processes > 1:
        return ["torchrun", "--nproc_per_node", str(processes), "-m", "stl10bench"]
    return ["stl10bench"]


def _comments(row: Row, config: RunConfig) -> list[str]:
    lines = []
    if commit := row.commit:
        changed = ", with changed files" if row.dirty else ""
        lines.append(f"# at commit {clean(str(commit))}{changed}")
    if "DIR" in _where(row, config):
        lines.append(f"# DIR: data with the fingerprint {config.data}")
    if config.weights.startswith("sha256:"):
        lines.append(f"# FILE: weights with the sha256 {clean(config.weights[7:])}")
    elif config.weights.startswith("hub:"):
        lines.append(f"# begins from {clean(config.weights)}")
    if row.stacked > 1:
        lines.append(
            f"# it was one of {row.stacked} trained at once by stl10bench.train_stack, and is "
            "the same up to rounding when trained alone"
        )
    return lines


def _joined(words: list[str]) -> str:
    return " ".join(word if word in ("DIR", "FILE") else shlex.quote(word) for word in words)


_ENVIRONMENT = (
    *("cpu", "device", "threads", "processes", "platform", "python", "version"),
    *("commit", "dirty"),
)
_TITLES = {"version": "stl10bench", "dirty": "changed files", "cpu": "processor"}


def details(setting: Setting) -> Details:
    """The runs of a setting, and the command that trains each again."""
    runs = [run.row for run in setting.runs]
    counter = "fold" if runs[0]["config"].get("fold") is not None else "seed"
    runs.sort(key=lambda row: row.config.get(counter) or 0)
    keys = ("best_epoch", "epochs", "train_seconds")
    header = ("run", counter, "test accuracy [95 %]", "test loss", *map(_title, keys))
    lines = tuple(
        tuple(
            Cell(text)
            for text in (
                clean(row.run),
                word(row.config.get(counter, 0)),
                columns.text({**row, "at_chance": None}, columns.COLUMNS["test_accuracy"]),
                columns.text(row, columns.COLUMNS["test_loss"]),
                *(_read(row, key) for key in keys),
            )
        )
        for row in runs
    )
    several = f"{len(runs)} runs and their commands" if len(runs) > 1 else "run and command"
    table = Table(f"Runs of {setting.name}", header, lines)
    return Details(several, (table, Code(reproducing(runs))))


def environment(part: Part) -> Section:
    """The machines, versions and commits, and which runs were made on each."""
    made: dict[tuple[str, ...], list[str]] = {}
    libraries: dict[str, None] = {}
    for setting in part.settings:
        for run in setting.runs:
            libraries |= dict.fromkeys(_libraries(run.row))
    for setting in part.settings:
        for run in setting.runs:
            own = _libraries(run.row)
            facts = [word(run.row.get(key)) for key in _ENVIRONMENT]
            facts[_ENVIRONMENT.index("commit")] = word(run.row.commit)[:12]
            facts += [word(own.get(name)) for name in libraries]
            made.setdefault(tuple(facts), []).append(clean(run.row.run))
    header = ("", *(f"{n}" for n in range(1, len(made) + 1)))
    names = [*(_TITLES.get(key, key) for key in _ENVIRONMENT), *map(clean, libraries), "runs"]
    listed = tuple(", ".join(runs) if len(made) > 1 else "all" for runs in made.values())
    rows = [*zip(*made, strict=True), listed]
    lines = tuple(
        (Cell(name), *map(Cell, values)) for name, values in zip(names, rows, strict=True)
    )
    table = Table("Machines and versions", header, lines, left=header[1:])
    return Section("Environment", (Text(_REMARK), table))


_REMARK = (
    "What made the runs, as they noted it. A row's fold-out has the command that trains it again; "
    "stl10bench reproduce RUN does so and says whether the bits agree."
)


def word(value: Any) -> str:
    """Any JSON value as a short word."""
    if value is None:
        return columns.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
    return clean(str(value))[:100]


def _read(row: dict[str, Any], key: str) -> str:
    column = columns.COLUMNS.get(key)
    return columns.text(row, column) if column else word(row.get(key))


def _title(key: str) -> str:
    column = columns.COLUMNS.get(key)
    return column.title if column else key.replace("_", " ")


def _libraries(row: dict[str, Any]) -> dict[str, Any]:
    found = row.libraries
    return found if isinstance(found, dict) else {}


def failures(failed: Sequence[tuple[str, str]]) -> Table:
    """What did not finish, and why."""
    lines = tuple((Cell(clean(name)), Cell(clean(reason))) for name, reason in failed)
    return Table("Runs that failed", ("model", "reason"), lines, left=("reason",))
