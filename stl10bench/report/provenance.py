"""The runs of a report -> their settings, and the machines and versions that made them."""

import shlex
from collections.abc import Sequence

from stl10bench.core.console import clean
from stl10bench.report.document import Code, Details, Section, Text
from stl10bench.report.load import RunGroup, Setting
from stl10bench.results import columns
from stl10bench.results.columns import plain
from stl10bench.results.rows import Failure, Row
from stl10bench.results.table import Table

_RUN = ("test_accuracy", "test_loss", "best_epoch", "epochs", "train_seconds")
_FACTS = {
    "cpu": "processor",
    **{key: key for key in ("device", "threads", "processes", "platform", "python")},
    "version": "stl10bench",
    "commit": "commit",
    "dirty": "uncommitted changes",
}
_NOT_VARIED = {"model", "model_options", "data", "seed", "fold", "k_fold_part"}  # shown elsewhere
_ENVIRONMENT = (
    "The machines and versions that the runs recorded. stl10bench reproduce RUN trains a run again "
    "and compares it bit by bit."
)


def run_details(setting: Setting) -> Details:
    """The runs of a setting, its settings, and how to train the runs again."""
    rows = [run.row for run in setting.runs]
    counter = "seed"
    if setting.row.config.fold is not None:
        counter = "fold"
    elif setting.row.config.k_fold is not None:
        counter = "k_fold_part"
    rows.sort(key=lambda row: getattr(row.config, counter))
    chosen = [columns.column(key) for key in ("run", counter, *_RUN)]
    header = tuple(column.title for column in chosen)
    lines = tuple(tuple(columns.text(row, column) for column in chosen) for row in rows)
    config = setting.row.config.model_dump(exclude_defaults=True, exclude=_NOT_VARIED)
    settings = {**setting.row.model_options, **config}
    text = ", ".join(f"{key} {plain(value)}" for key, value in settings.items())
    commands = [_command(row) for row in rows]
    return Details(
        f"{len(rows)} runs and their settings" if len(rows) > 1 else "run and settings",
        (
            Table(f"Runs of {setting.name}", header, lines),
            Text(f"Non-default settings: {clean(text) or 'none'}"),
            Code("\n".join(commands)),
        ),
    )


def _command(row: Row) -> str:
    """What trains a run again; a run of others is called `<archive>:<run>`."""
    if not row.source:
        return f"stl10bench reproduce {shlex.quote(clean(str(row.run)))}"
    archive, _, run = clean(str(row.run)).rpartition(":")
    return f"stl10bench rows verify {shlex.quote(archive)} {run} --level reproduced"


def environment(group: RunGroup) -> Section:
    """The machines, versions and commits, and which runs were made on each."""
    rows = [run.row for setting in group.settings for run in setting.runs]
    libraries = dict.fromkeys(name for row in rows for name in row.libraries)
    runs_of: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        facts = [getattr(row, key) for key in _FACTS]
        facts += [row.libraries.get(name) for name in libraries]
        texts = tuple(clean(plain(fact)) for fact in facts)
        runs_of.setdefault(texts, []).append(clean(str(row.run)))
    header = ("", *(str(number + 1) for number in range(len(runs_of))))
    listed = tuple(", ".join(runs) if len(runs_of) > 1 else "all" for runs in runs_of.values())
    names = (*_FACTS.values(), *map(clean, libraries), "runs")
    values = (*zip(*runs_of, strict=True), listed)
    lines = tuple((name, *line) for name, line in zip(names, values, strict=True))
    table = Table("Machines and versions", header, lines, left=header[1:])
    return Section("Environment", (Text(_ENVIRONMENT), table))


def failure_table(failures: Sequence[tuple[str, Failure]]) -> Table:
    """What did not finish, by its name, and why."""
    lines = tuple((name, clean(failure.error)) for name, failure in failures)
    return Table("Runs that failed", ("model", "reason"), lines, left=("reason",))
