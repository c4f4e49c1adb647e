"""Downloads, checks, audits, draws and imports data."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stl10bench.commands.options import DATA, with_options
from stl10bench.terminal import stderr

app = typer.Typer(help="Download, check, audit, draw or import data.", no_args_is_help=True)


@app.command()
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
    downloads.download(data_dir, members=sorted(members), archive=archive, console=stderr())
    typer.echo(f"STL-10 is in {data_dir / 'stl10_binary'}")


@app.command()
@with_options({"data_dir": DATA["data_dir"]})
def verify(*, data_dir: Path) -> None:
    """Check the files and say what they are."""
    from stl10bench.data.stl10 import open_dataset

    found = open_dataset(data_dir)
    typer.echo(
        f"{found.name}: {len(found.train.labels):,} train and {len(found.test.labels):,} test "
        f"images, {len(found.class_names)} classes, fingerprint {found.fingerprint[:12]}"
    )


@app.command("make-demo")
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


@app.command("import")
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
