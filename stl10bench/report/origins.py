"""Rows -> how to make each again: its runs, their commands and the machines that made them."""

from collections.abc import Sequence
from typing import Any

from stl10bench.escaping import clean
from stl10bench.report.blocks import Cell, Code, Details, Section, Table, Text
from stl10bench.report.commandline import reproducing
from stl10bench.report.material import Part, Setting
from stl10bench.tables import columns

_ENVIRONMENT = (
    *("cpu", "device", "threads", "processes", "platform", "python", "version"),
    *("commit", "dirty"),
)
_TITLES = {"version": "stl10bench", "dirty": "changed files", "cpu": "processor"}


def details(setting: Setting) -> Details:
    """The runs of a setting, and the command that trains each again."""
    runs = [run.row for run in setting.runs]
    counter = "fold" if runs[0]["config"].get("fold") is not None else "seed"
    runs.sort(key=lambda row: row["config"].get(counter) or 0)
    keys = ("best_epoch", "epochs", "train_seconds")
    header = ("run", counter, "test accuracy [95 %]", "test loss", *map(_title, keys))
    lines = tuple(
        tuple(
            Cell(text)
            for text in (
                clean(row["run"]),
                word(row["config"].get(counter, 0)),
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
            facts[_ENVIRONMENT.index("commit")] = word(run.row.get("commit"))[:12]
            facts += [word(own.get(name)) for name in libraries]
            made.setdefault(tuple(facts), []).append(clean(run.row["run"]))
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
    found = row.get("libraries")
    return found if isinstance(found, dict) else {}


def failures(failed: Sequence[tuple[str, str]]) -> Table:
    """What did not finish, and why."""
    lines = tuple((Cell(clean(name)), Cell(clean(reason))) for name, reason in failed)
    return Table("Runs that failed", ("model", "reason"), lines, left=("reason",))
