"""Downloads, verifies, audits, draws and imports data."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from stl10bench.cli.options import DATA, DATA_DIR, JSON, DataDir, with_options
from stl10bench.core.console import progress, stderr, stdout
from stl10bench.data import demo, duplicates, image_folder
from stl10bench.data.download import FOLDS, LABELLED, UNLABELLED, URL, download_stl10
from stl10bench.data.duplicates import Audit, Copies
from stl10bench.data.load import open_data
from stl10bench.data.stl10 import open_dataset, open_unlabelled
from stl10bench.results.table import Table, print_table

app = typer.Typer(no_args_is_help=True)


@app.command()
def download(
    data_dir: DataDir = DATA_DIR,
    archive: Annotated[Path | None, typer.Option("--from", help="An archive on disk.")] = None,
    folds: Annotated[bool, typer.Option("--folds", help="Folds too: reads all 2.6 GB.")] = False,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Extract the unlabelled images too: 2.8 GB.")
    ] = False,
) -> None:
    """Download STL-10, resumably, and verify it.

    The labelled splits lie at the beginning of the official
    archive: only that eighth of its 2.6 GB is downloaded.

    Examples:
    stl10bench data download
    stl10bench data download --from stl10_binary.tar.gz
    """
    members = {*LABELLED, *(FOLDS if folds else ()), *(UNLABELLED if unlabelled else ())}
    download_stl10(data_dir, members=sorted(members), source=archive or URL, console=stderr())
    typer.echo(f"STL-10 is in {data_dir / 'stl10_binary'}")


@app.command()
def verify(data_dir: DataDir = DATA_DIR) -> None:
    """Verify MD5 checksums, sizes and labels.

    Examples:
    stl10bench data verify --data-dir data
    """
    typer.echo(open_dataset(data_dir).summary())


@app.command()
@with_options(DATA, JSON)
def audit(
    *,
    dataset: str,
    data_dir: Path,
    verify: bool,
    distance: Annotated[
        int, typer.Option(help="Bits of 63 in which near copies may differ.", min=0, max=16)
    ] = 4,
    examples: Annotated[int, typer.Option(help="Examples of each kind.", min=0)] = 5,
    unlabelled: Annotated[bool, typer.Option(help="Audit the unlabelled images too.")] = True,
    as_json: bool,
) -> None:
    """Find exact and near copies within and between the splits.

    Near copies have perceptual hashes that differ in few of 63
    bits, as after JPEG or a change of brightness or of a few
    pixels. Mirrored or much cropped ones are missed; with 6 bits
    or more, images that only look alike are found as well.

    Examples:
    stl10bench data audit
    stl10bench data audit --distance 6 --examples 20 --json
    """
    data = open_data(dataset, data_dir, download=False, verify=verify, console=stderr())
    splits: duplicates.Splits = {
        "train": (data.train.images, data.train.labels),
        "test": (data.test.images, data.test.labels),
    }
    if unlabelled and (data.folder / "unlabeled_X.bin").is_file():
        splits["unlabelled"] = open_unlabelled(data.folder.parent), None
    images = {name: len(pixels) for name, (pixels, _) in splits.items()}
    started = time.monotonic()
    with progress("reading images", sum(images.values())) as advance:
        facts = duplicates.read(splits, advance)
    exact = duplicates.exact(facts, examples=examples)
    with progress("comparing them", duplicates.comparisons(facts)) as advance:
        near = duplicates.near(facts, distance=distance, examples=examples, advance=advance)
    seconds = time.monotonic() - started
    stderr().print(f"{sum(images.values()):,} images audited in {seconds:.1f} s", highlight=False)
    if as_json:
        report = {
            "dataset": data.name,
            "data": data.fingerprint,
            "images": images,
            "distance": distance,
            "exact": duplicates.as_json(exact),
            "near": duplicates.as_json(near),
            "seconds": seconds,
        }
        typer.echo(json.dumps(report))
        return
    counts = ", ".join(f"{count:,} {name}" for name, count in images.items())
    title = f"{data.name} {data.fingerprint[:12]}: {counts} images"
    table = _audit_table(title, distance, exact, near)
    expendable = ("other label", "near images", "exact images")  # on a narrow terminal
    print_table(table, stdout(), expendable=expendable, whole="--json")
    for kind, sign, copies in (("exact", "=", exact), ("near", "~", near)):
        for (first, second), pairs in copies.items():
            for i, j in pairs.examples:
                typer.echo(f"{kind}: {first} {i} {sign} {second} {j}")


def _audit_table(title: str, distance: int, exact: Audit, near: Audit) -> Table:
    """A line for each split and each two of them."""

    def counts(copies: Copies, *, same: bool) -> tuple[str, str]:
        first, second = copies.images
        return f"{copies.pairs:,}", f"{first:,}" if same else f"{first:,} + {second:,}"

    lines = []
    for (first, second), copies in exact.items():
        alike, same = near[first, second], first == second
        labels = "-"
        if copies.other_label is not None and alike.other_label is not None:
            labels = f"{copies.other_label + alike.other_label:,}"
        name = f"within {first}" if same else f"{first} and {second}"
        lines.append((name, *counts(copies, same=same), *counts(alike, same=same), labels))
    header = ("splits", "exact pairs", "exact images", "near pairs", "near images", "other label")
    note = (
        f"exact: the same bytes; near: perceptual hashes that differ in at most {distance} of 63 "
        "bits, each of several exact copies counted once a split; other label: pairs whose labels "
        "differ"
    )
    return Table(title, header, tuple(lines), (("splits", note),))


@app.command("make-demo")
def make_demo(
    data_dir: DataDir = DATA_DIR,
    train_images: Annotated[int, typer.Option("--train", help="Training images.", min=10)] = 2000,
    test_images: Annotated[int, typer.Option("--test", help="Test images.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed draws other images.", min=0)] = 0,
) -> None:
    """Draw demo data into DATA_DIR/demo.

    Ten classes drawn by code, in STL-10's layout. Under 60 s.

    Examples:
    stl10bench data make-demo --data-dir data
    """
    folder = data_dir / "demo"
    demo.make_demo(folder, train=train_images, test=test_images, seed=seed)
    typer.echo(f"demo data (drawn, not STL-10) are in {folder}: use them with --dataset demo")


@app.command("import")
def import_folder(
    source: Annotated[Path, typer.Argument(help="A folder with a folder of images per class.")],
    data_dir: Annotated[Path, typer.Option(help="Folder to write stl10_binary/ into.")],
    size: Annotated[
        int, typer.Option(help="Height and width of the stored images.", min=8, max=1024)
    ] = 96,
    test_fraction: Annotated[float, typer.Option(help="Share of the test split.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the split.", min=0)] = 0,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Skip other files.")] = False,
) -> None:
    """Import your own photos, as 96x96 images in STL-10's layout.

    Examples:
    stl10bench data import photos --data-dir mine
    """
    counts = image_folder.import_folder(
        source,
        data_dir,
        size=size,
        test_fraction=test_fraction,
        seed=seed,
        skip_broken=skip_broken,
    )
    typer.echo(f"wrote {data_dir / 'stl10_binary'}: {json.dumps(counts)}")
