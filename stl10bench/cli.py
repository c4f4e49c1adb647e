"""The commands: options -> rows and files on stdout, progress and errors on stderr; light."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import stl10bench
from stl10bench import benchmark as benchmarks
from stl10bench import results
from stl10bench.errors import BenchError, UsageError, unknown
from stl10bench.models import registry
from stl10bench.options import (
    DATA,
    JSON,
    MACHINE,
    PLUGIN,
    TRAINING,
    command_line,
    key_values,
    load_plugin,
    settings,
    with_options,
)

app = typer.Typer(
    name="stl10bench",
    help="Train and compare image classifiers on STL-10.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Download, check, draw or import data.", no_args_is_help=True)
app.add_typer(data, name="data")


@app.command()
@with_options(TRAINING, JSON)
def train(
    model: Annotated[str, typer.Argument(help="A registered model, or timm:<any timm model>.")],
    **options: Any,
) -> None:
    """Train one model and print its row.

    Examples: stl10bench train cnn --epochs 5 / stl10bench train mobilenetv2 --no-freeze
    """
    from stl10bench import api

    as_json = options.pop("as_json")
    row = api.train(model, console=_stderr(), **settings(options))
    if _is_main():
        _print_rows([row], as_json=as_json)


@app.command()
@with_options(PLUGIN, DATA, MACHINE, JSON)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run's best.safetensors.")],
    *,
    split: Annotated[str, typer.Option(help="test, train, or val: the run's hold-out.")] = "test",
    as_json: bool,
    plugin: str | None,
    **options: Any,
) -> None:
    """Measure a checkpoint; needs only the file and the data."""
    from stl10bench import api

    load_plugin(plugin)
    row = api.evaluate(checkpoint, split=split, console=_stderr(), **options)
    if not _is_main():
        return
    if as_json:
        typer.echo(json.dumps(row))
    else:
        low, high = row[f"{split}_accuracy_interval"]
        typer.echo(
            f"{row['model']} on {row['dataset']}, {split} split, {row[f'{split}_images']:,} "
            f"images: accuracy {row[f'{split}_accuracy']:.4f} [{low:.4f}, {high:.4f}], "
            f"loss {row[f'{split}_loss']}"
        )


@app.command()
@with_options(TRAINING)
def benchmark(
    models: Annotated[list[str] | None, typer.Argument(help="Models, or --all.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="The report's five rows.")] = False,
    style: Annotated[
        str, typer.Option("--format", help=f"{', '.join(results.FORMATS)}.")
    ] = "table",
    freeze: bool | None,
    **options: Any,
) -> None:
    """Train what is missing, each model in its own process, and print one table.

    Examples: stl10bench benchmark --all / stl10bench benchmark cnn timm:resnet18 --epochs 10
    """
    if style not in results.FORMATS:
        raise unknown("format", style, results.FORMATS)
    load_plugin(options["plugin"])
    entries = benchmarks.plan(models or [], everything=everything, freeze=freeze)
    console, rows = _stderr(), []
    fitted = benchmarks.fit(entries, options)
    for number, (entry, own) in enumerate(zip(entries, fitted, strict=True), 1):
        kind = {None: "", True: " --freeze", False: " --no-freeze"}[entry.freeze]
        title = f"[{number}/{len(entries)}] {entry.model}{kind}"
        console.print(title, style="bold", markup=False, highlight=False)
        rows.append(benchmarks.run(entry, command_line(own)))
    results.show(rows, style, _stdout())
    if all("error" in row for row in rows):
        raise UsageError("no run succeeded; the table says why")


@app.command()
def table(
    runs_dir: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    style: Annotated[
        str, typer.Option("--format", help=f"{', '.join(results.FORMATS)}.")
    ] = "table",
) -> None:
    """Print the table of all finished runs."""
    rows = results.stored(runs_dir)
    if not rows:
        raise UsageError(f"no finished run in {runs_dir}: train one, or give --runs-dir")
    results.show(rows, style, _stdout())


@app.command()
@with_options(PLUGIN, JSON)
def models(*, plugin: str | None, as_json: bool) -> None:
    """List the models."""
    load_plugin(plugin)
    names = registry.names()
    if as_json:
        typer.echo(json.dumps({"models": names, "prefix": registry.TIMM}))
    else:
        typer.echo("\n".join([*names, f"{registry.TIMM}<any timm model>, e.g. timm:resnet18"]))


@app.command()
@with_options(PLUGIN, JSON)
def describe(
    model: Annotated[str, typer.Argument(help="A registered model, or timm:<any timm model>.")],
    *,
    image_size: Annotated[int, typer.Option(help="Input size, pixels.")] = 64,
    num_classes: Annotated[int, typer.Option(help="Number of classes.", min=2)] = 10,
    model_option: Annotated[
        list[str] | None, typer.Option(help="Any option of the model.", metavar="KEY=VALUE")
    ] = None,
    plugin: str | None,
    as_json: bool,
) -> None:
    """Print a model's layers, output shapes, parameters and MACs."""
    load_plugin(plugin)
    registry.check_name(model)
    given = key_values(model_option)

    from stl10bench.models import summary

    module = registry.build(model, num_classes, image_size, given)
    total, trainable = summary.parameters(module)
    macs = summary.macs(module, image_size)
    layers = summary.layers(module, image_size)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "model": model,
                    "options": registry.check_options(model, given),
                    "image_size": image_size,
                    "parameters": total,
                    "trainable_parameters": trainable,
                    "macs": macs,
                    "layers": [vars(layer) for layer in layers],
                }
            )
        )
        return
    from rich.table import Table

    grid = Table(title=f"{escape(model)}, {image_size} px", title_justify="left")
    grid.add_column("layer")
    grid.add_column("output", justify="right")
    grid.add_column("parameters", justify="right")
    for layer in layers:
        shape = "x".join(map(str, layer.shape))
        grid.add_row(layer.kind, shape, f"{layer.parameters:,}" if layer.parameters else "-")
    _stdout().print(grid)
    typer.echo(f"{total:,} parameters, {trainable:,} of them trainable; {macs:,} MACs an image")


@data.command()
def download(
    data_dir: Annotated[Path, DATA["data_dir"][0].__metadata__[0]] = Path("data"),
    archive: Annotated[
        Path | None, typer.Option("--from", help="An archive that is on disk already.")
    ] = None,
    folds: Annotated[
        bool, typer.Option("--folds", help="The ten folds as well; reads the whole archive.")
    ] = False,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="The 100,000 unlabelled images as well, 2.8 GB.")
    ] = False,
) -> None:
    """Fetch STL-10's official archive, resumably, as far as is needed, and verify what it holds.

    The labelled splits lie at its beginning (an eighth of 2.6 GB).
    """
    from stl10bench.data import download as downloads

    members = {
        *downloads.LABELLED,
        *(downloads.FOLDS if folds else ()),
        *(downloads.UNLABELLED if unlabelled else ()),
    }
    downloads.download(data_dir, members=sorted(members), archive=archive, console=_stderr())
    typer.echo(f"STL-10 is in {data_dir / 'stl10_binary'}")


@data.command()
@with_options({"data_dir": DATA["data_dir"]})
def verify(*, data_dir: Path) -> None:
    """Check the files and say what they are."""
    from stl10bench.data.stl10 import open_dataset

    found = open_dataset(data_dir)
    typer.echo(
        f"{found.name}: {len(found.train.labels):,} train and {len(found.test.labels):,} test "
        f"images, {len(found.class_names)} classes, fingerprint {found.fingerprint[:12]}"
    )


@data.command("make-demo")
def make_demo(
    data_dir: Annotated[Path, DATA["data_dir"][0].__metadata__[0]] = Path("data"),
    train_images: Annotated[int, typer.Option("--train", help="Training images.", min=10)] = 2000,
    test_images: Annotated[int, typer.Option("--test", help="Test images.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed draws other images.", min=0)] = 0,
) -> None:
    """Draw the demo data into DATA_DIR/demo: ten classes made by code, in STL-10's layout."""
    from stl10bench.data import demo

    folder = data_dir / "demo"
    demo.make_demo(folder, train=train_images, test=test_images, seed=seed)
    typer.echo(f"demo data (drawn, not STL-10) are in {folder}: use them with --dataset demo")


@data.command("import")
def import_folder(
    source: Annotated[Path, typer.Argument(help="A folder with a folder of images per class.")],
    data_dir: Annotated[Path, typer.Option(help="Where to write stl10_binary/.")],
    test_fraction: Annotated[float, typer.Option(help="Share of the test split.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seeds the split.", min=0)] = 0,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out what is no image.")
    ] = False,
) -> None:
    """Write your own photos in STL-10's layout, 96x96."""
    from stl10bench.data import folder

    counts = folder.import_folder(
        source, data_dir, test_fraction=test_fraction, seed=seed, skip_broken=skip_broken
    )
    typer.echo(f"wrote {data_dir / 'stl10_binary'}: {json.dumps(counts)}")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"stl10bench {stl10bench.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _print_rows(rows: list[results.Row], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows[0]))
    else:
        results.show(rows, "table", _stdout())


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _stdout() -> Console:
    return Console()


def _stderr() -> Console:
    return Console(stderr=True, quiet=not _is_main())


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    _stderr().print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; errors that a user can act on are one line and an exit code."""
    warnings.showwarning = _warn
    try:
        code = app(standalone_mode=False)
    except (BenchError, typer.TyperException) as error:
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        line = " ".join(text.split())
        if "--json" in sys.argv:
            typer.echo(json.dumps({"error": line, "exit_code": error.exit_code}))
        typer.echo(f"error: {line}", err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
