"""Downloads, checks, audits, draws and imports data."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from stl10bench.cli.options import DATA, JSON, with_options
from stl10bench.core.console import stderr, stdout
from stl10bench.data.duplicates import Copies, Found
from stl10bench.results.tables import Table, print_table

_EXPENDABLE = ("other label", "near images", "exact images")  # on a narrow terminal

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
    from stl10bench.data.download import FOLDS, LABELLED, UNLABELLED, download_stl10

    members = {
        *LABELLED,
        *(FOLDS if folds else ()),
        *(UNLABELLED if unlabelled else ()),
    }
    download_stl10(data_dir, members=sorted(members), archive=archive, console=stderr())
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


@app.command()
@with_options(DATA, JSON)
def audit(
    *,
    dataset: str,
    data_dir: Path,
    verify: bool,
    distance: Annotated[
        int,
        typer.Option(help="Bits of 63 in which near copies may differ.", min=0, max=16),
    ] = 4,
    examples: Annotated[int, typer.Option(help="Examples of each kind.", min=0)] = 5,
    unlabelled: Annotated[
        bool, typer.Option(help="The unlabelled images as well, if they are there.")
    ] = True,
    as_json: bool,
) -> None:
    """Find copies within and between the splits: the same bytes, or nearly the same picture.

    Near copies have perceptual hashes that differ in few of 63 bits, as after JPEG or a change of
    brightness or of a few pixels. Mirrored or much cropped ones are missed; with 6 bits or more,
    pictures that only look alike are found as well.
    """
    from rich.progress import Progress

    from stl10bench.data import duplicates
    from stl10bench.data.load import open_data
    from stl10bench.data.stl10 import open_unlabelled

    console = stderr()
    found = open_data(dataset, data_dir, download=False, verify=verify, console=console)
    splits: duplicates.Splits = {
        name: (part.images, part.labels)
        for name, part in (("train", found.train), ("test", found.test))
    }
    if unlabelled and (found.folder / "unlabeled_X.bin").is_file():
        splits["unlabelled"] = open_unlabelled(found.folder.parent), None
    started = time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        total = sum(len(images) for images, _ in splits.values())
        task = bar.add_task("reading images", total=total)
        facts = duplicates.read(splits, lambda count: bar.advance(task, count))
        task = bar.add_task("comparing them", total=duplicates.comparisons(facts))
        exact = duplicates.exact(facts, examples=examples)
        near = duplicates.near(
            facts,
            distance=distance,
            examples=examples,
            advance=lambda count: bar.advance(task, count),
        )
    seconds = time.monotonic() - started
    console.print(f"{total:,} images audited in {seconds:.1f} s", highlight=False)
    if as_json:
        report = {
            "dataset": found.name,
            "data": found.fingerprint,
            "images": {name: len(images) for name, (images, _) in splits.items()},
            "distance": distance,
            "exact": duplicates.as_json(exact),
            "near": duplicates.as_json(near),
            "seconds": seconds,
        }
        typer.echo(json.dumps(report))
    else:
        counts = ", ".join(f"{len(images):,} {name}" for name, (images, _) in splits.items())
        title = f"{found.name} {found.fingerprint[:12]}: {counts} images"
        grid = _audit_grid(title, distance, exact, near)
        print_table(grid, stdout(), expendable=_EXPENDABLE, whole="--json")
        typer.echo(
            _audit_examples("exact", "=", exact) + _audit_examples("near", "~", near), nl=False
        )


def _audit_examples(kind: str, sign: str, found: Found) -> str:
    return "".join(
        f"{kind}: {one} {i} {sign} {other} {j}\n"
        for (one, other), copies in found.items()
        for i, j in copies.examples
    )


def _audit_grid(title: str, distance: int, exact: Found, near: Found) -> Table:
    """A line for each split and each two of them."""

    def images(found: Copies, *, same: bool) -> str:
        one, other = found.images
        return f"{one:,}" if same else f"{one:,} + {other:,}"

    lines = []
    for (one, other), same_bytes in exact.items():
        alike, same = near[one, other], one == other
        labels = "-"
        if same_bytes.other_label is not None and alike.other_label is not None:
            labels = f"{same_bytes.other_label + alike.other_label:,}"
        lines.append(
            (
                f"within {one}" if same else f"{one} and {other}",
                f"{same_bytes.pairs:,}",
                images(same_bytes, same=same),
                f"{alike.pairs:,}",
                images(alike, same=same),
                labels,
            )
        )
    header = ("splits", "exact pairs", "exact images", "near pairs", "near images", "other label")
    note = (
        f"exact: the same bytes; near: perceptual hashes that differ in at most {distance} of 63 "
        "bits, each of several exact copies counted once a split; other label: pairs whose labels "
        "differ"
    )
    return Table(title, header, tuple(lines), (("splits", note),))


@app.command("make-demo")
def make_demo(
    data_dir: Annotated[Path, DATA["data_dir"][0].__metadata__[0]] = Path("data"),
    train_images: Annotated[int, typer.Option("--train", help="Training images.", min=10)] = 2000,
    test_images: Annotated[int, typer.Option("--test", help="Test images.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed draws other images.", min=0)] = 0,
) -> None:
    """Draw the demo data into DATA_DIR/demo: ten classes made by code, in STL-10's layout."""
    from stl10bench.data.demo import make_demo

    folder = data_dir / "demo"
    make_demo(folder, train=train_images, test=test_images, seed=seed)
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
    from stl10bench.data.image_folder import import_folder

    counts = import_folder(
        source, data_dir, test_fraction=test_fraction, seed=seed, skip_broken=skip_broken
    )
    typer.echo(f"wrote {data_dir / 'stl10_binary'}: {json.dumps(counts)}")
