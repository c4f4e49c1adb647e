"""Shares finished runs as one file, and verifies such a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl10bench.cli.options import (
    DATA,
    JSON,
    MACHINE,
    OVERWRITE,
    PLUGIN,
    RUNS,
    RunNames,
    RunsDir,
    choice,
    in_a_folder,
    load_plugin,
    with_options,
)
from stl10bench.core.console import clean, stderr
from stl10bench.core.errors import UsageError, unknown
from stl10bench.core.launcher import count_of
from stl10bench.results.comparison import finished_folders
from stl10bench.results.row_archive import SharedRun, named, note_levels, unpack
from stl10bench.results.rows import LEVELS

if TYPE_CHECKING:
    from stl10bench.inference.shared_rows import Verified

app = typer.Typer(no_args_is_help=True)


@app.command()
@with_options(JSON)
def share(
    run: RunNames = None,
    *,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to write, e.g. rows.tar.", callback=in_a_folder),
    ],
    with_checkpoint: Annotated[
        bool, typer.Option("--with-checkpoint", help="Add the tested weights of each run.")
    ] = False,
    runs_dir: RunsDir = RUNS,
    as_json: bool,
) -> None:
    """Write settings, rows and predictions of finished runs to a tar.

    Without names it takes all finished runs. No path, host,
    user or key is in it; the same runs give the same bytes.

    Examples:
    stl10bench rows share cnn-1a2b mlp-3c4d -o rows.tar
    stl10bench rows share --with-checkpoint -o rows.tar
    """
    from stl10bench.inference.shared_rows import share

    folders = finished_folders(runs_dir, run or [], fewest=0)
    if not folders:
        raise UsageError(f"no finished run in {runs_dir}: train one, or pass --runs-dir")
    share(output, folders, with_checkpoint=with_checkpoint)
    size, names = output.stat().st_size, [folder.name for folder in folders]
    if as_json:
        facts = {"archive": str(output), "runs": names, "bytes": size}
        typer.echo(json.dumps({**facts, "checkpoints": with_checkpoint}))
        return
    noun = "1 run" if len(names) == 1 else f"{len(names)} runs"
    checkpoints = "with checkpoints" if with_checkpoint else "without checkpoints"
    typer.echo(f"wrote {output} ({noun} {checkpoints}, {size / 1e6:.1f} MB)")


@app.command()
@with_options(DATA, MACHINE, PLUGIN, OVERWRITE, JSON)
def verify(
    archive: Annotated[Path, typer.Argument(help="A file from 'rows share'.")],
    run: Annotated[
        list[str] | None, typer.Argument(help="Runs in it, or beginnings of their names.")
    ] = None,
    *,
    level: Annotated[
        str | None,
        choice(
            "level",
            LEVELS,
            help_text=f"How far to check: {', '.join(LEVELS)} "
            r"\[default: re-evaluated, or recomputed without a checkpoint].",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            help="For reproduced: if the bits differ, train N seeds to know their noise.",
            min=1,
            metavar="N",
        ),
    ] = 1,
    into: Annotated[Path, typer.Option(help="Folder of the runs that are trained again.")] = Path(
        "reproduced"
    ),
    weights: Annotated[
        Path | None, typer.Option(help="Initial weights of the runs, if they came from a file.")
    ] = None,
    runs_dir: RunsDir = RUNS,
    plugin: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Check the rows of others against your own data.

    whole: nothing was changed, and the row is of its settings.
    recomputed: the figures follow from its logits and your
    labels. re-evaluated: its checkpoint gives these logits.
    reproduced: trained again, it gives the same bits, or the
    same accuracy within noise (p of 0.05 or more).

    Each says what it cannot see. The level is kept in the runs
    folder, for the column 'verified' of table --with. Exits
    with 4 for a file that is not whole, 3 for other data, 8
    for a row that is refused.

    Examples:
    stl10bench rows verify rows.tar
    stl10bench rows verify rows.tar --level reproduced
    """
    from stl10bench.data.load import open_data
    from stl10bench.inference.shared_rows import Verifier, verify
    from stl10bench.models.pretrained import find_weights

    if count_of("WORLD_SIZE") > 1:
        raise UsageError("rows verify is one process: run this command without a launcher")
    load_plugin(plugin)
    with TemporaryDirectory(prefix="stl10bench-rows-") as folder:
        shared = _chosen(unpack(archive, Path(folder)), run or [])
        verifier = None
        if level != LEVELS[0]:
            data = {key: options[key] for key in ("dataset", "data_dir", "verify")}
            dataset = open_data(**data, download=False, console=stderr())
            file = None if weights is None else find_weights(weights, runs_dir)
            job = {**options, "weights": file, "plugin": plugin}
            machine = options["device"], options["threads"]
            verifier = Verifier(dataset, *machine, into, job, seeds, stderr())
        verified = []
        for each in shared:  # what is known of each is kept whatever happens to the next
            with named(archive, Path(folder)):
                verified.append(verify(each, verifier, level))  # type: ignore[arg-type]
            note_levels(runs_dir, {each.digest: verified[-1].level})
    errors = [each.error for each in verified if each.error is not None]
    if as_json:
        code = errors[0].exit_code if errors else 0
        typer.echo(json.dumps(_to_json(archive, verified, code)))
        raise typer.Exit(code)
    _print(verified)
    if errors:
        raise errors[0]


def _chosen(shared: Sequence[SharedRun], names: Sequence[str]) -> list[SharedRun]:
    """The runs of an archive whose names begin with one of `names`, or all."""
    runs = [each.folder.name for each in shared]
    for name in names:
        if not any(run.startswith(name) for run in runs):
            raise unknown("run", name, runs)
    return [each for each in shared if each.folder.name.startswith(tuple(names) or "")]


def _print(verified: "Sequence[Verified]") -> None:
    from stl10bench.inference.shared_rows import PROVES

    for each in verified:
        typer.echo(f"{each.run}: {each.level}")
        for level, detail in each.details.items():
            typer.echo(f"  {level:13} {clean(detail)}")
        if each.error is not None:
            typer.echo(f"  {'refused':13} {clean(str(each.error))}")
    typer.echo()
    for level in LEVELS:
        if any(level in each.details for each in verified):
            proves, unseen = PROVES[level]
            typer.echo(f"{level}: {proves}. It cannot see {unseen}.")


def _to_json(archive: Path, verified: "Sequence[Verified]", code: int) -> dict[str, Any]:
    from stl10bench.inference.shared_rows import PROVES

    runs = [
        {
            "run": each.run,
            "level": each.level,
            "levels": dict(each.details),
            "refused": None if each.error is None else str(each.error),
        }
        for each in verified
    ]
    levels = {
        level: {"proves": proves, "cannot_see": unseen}
        for level, (proves, unseen) in PROVES.items()
    }
    return {"archive": str(archive), "runs": runs, "levels": levels, "exit_code": code}
