"""Downloads, verifies, audits, draws and imports data."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stl10bench.cli.options import DATA, DATA_DIR, JSON, DataDir, with_options
from stl10bench.core.console import progress, stderr, stdout
from stl10bench.data import demo, duplicates, image_folder
from stl10bench.data.download import FOLDS, LABELLED, UNLABELLED, URL, download_stl10
from stl10bench.data.duplicates import Audit, Copies
from stl10bench.data.load import open_data
from stl10bench.data.stl10 import FOLDER, open_dataset, open_unlabelled
from stl10bench.results.table import Table, print_table

app = typer.Typer(no_args_is_help=True)


@app.command()
@with_options(JSON)
def download(
    data_dir: DataDir = DATA_DIR,
    archive: Annotated[
        Path | None, typer.Option("--from", help="Read this archive instead of downloading it.")
    ] = None,
    folds: Annotated[
        bool, typer.Option("--folds", help="Also get the folds: downloads all 2.6 GB.")
    ] = False,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Also extract the unlabelled images: 2.8 GB.")
    ] = False,
    *,
    as_json: bool,
) -> None:
    """Download STL-10 and verify it, or resume a download.

    The labelled splits lie at the beginning of the official
    archive: only that eighth of its 2.6 GB is downloaded.

    Examples:
    stl10bench data download
    stl10bench data download --from stl10_binary.tar.gz
    """
    members = {*LABELLED, *(FOLDS if folds else ()), *(UNLABELLED if unlabelled else ())}
    download_stl10(data_dir, members=sorted(members), source=archive or URL, console=stderr())
    folder = str(data_dir / FOLDER)
    _answer(f"STL-10 is in {folder}", {"folder": folder, "files": sorted(members)}, as_json)


@app.command()
@with_options(JSON)
def verify(data_dir: DataDir = DATA_DIR, *, as_json: bool) -> None:
    """Verify MD5 checksums, sizes and labels.

    Examples:
    stl10bench data verify --data-dir data
    """
    data = open_dataset(data_dir)
    facts = {
        "folder": str(data.folder),
        "dataset": data.name,
        "data": data.fingerprint,
        "image_size": data.image_size,
        "classes": len(data.class_names),
        "train": len(data.train.labels),
        "test": len(data.test.labels),
    }
    _answer(data.summary(), facts, as_json)


@app.command()
@with_options(DATA, JSON)
def audit(
    *,
    dataset: str,
    data_dir: Path,
    verify: bool,
    distance: Annotated[
        int, typer.Option(help="Near copies differ in at most so many of 63 bits.", min=0, max=16)
    ] = duplicates.DISTANCE,
    examples: Annotated[int, typer.Option(help="Examples to list of each kind.", min=0)] = 5,
    unlabelled: Annotated[bool, typer.Option(help="Audit the unlabelled images too.")] = True,
    as_json: bool,
) -> None:
    """Find exact and near copies within and between the splits.

    The perceptual hashes of near copies differ in few of their
    63 bits: after JPEG compression, or a change of brightness or
    of a few pixels. Mirrored and heavily cropped copies are
    missed. From --distance 6 on, images that merely look alike
    are found as well.

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
    with progress("Reading images", sum(images.values())) as advance:
        facts = duplicates.read(splits, advance)
    exact = duplicates.exact(facts, examples=examples)
    with progress("Comparing images", duplicates.comparisons(facts)) as advance:
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
        f"exact: the same pixels; near: perceptual hashes that differ in at most {distance} of 63 "
        "bits (of the exact copies in a split only the first counts); other label: pairs with "
        "different labels"
    )
    return Table(title, header, tuple(lines), (("splits", note),))


@app.command("make-demo")
@with_options(JSON)
def make_demo(
    data_dir: DataDir = DATA_DIR,
    train_images: Annotated[int, typer.Option("--train", help="Training images.", min=10)] = 2000,
    test_images: Annotated[int, typer.Option("--test", help="Test images.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the drawings.", min=0)] = 0,
    *,
    as_json: bool,
) -> None:
    """Draw demo data into DATA_DIR/demo.

    Images of ten classes, drawn by code, in STL-10's layout.
    Under 60 s.

    Examples:
    stl10bench data make-demo --data-dir data
    """
    folder = data_dir / "demo"
    demo.make_demo(folder, train=train_images, test=test_images, seed=seed)
    sentence = f"The demo data (drawn, not STL-10) are in {folder}. Use them with --dataset demo."
    facts = {"folder": str(folder / FOLDER), "train": train_images, "test": test_images}
    _answer(sentence, facts, as_json)


@app.command("import")
@with_options(JSON)
def import_folder(
    source: Annotated[Path, typer.Argument(help="Folder with a folder of photos for each class.")],
    data_dir: Annotated[Path, typer.Option(help="Folder in which to write stl10_binary/.")],
    size: Annotated[
        int, typer.Option(help="Height and width of the stored images.", min=8, max=1024)
    ] = 96,
    test_fraction: Annotated[
        float, typer.Option(help="Share of each class for the test split, if SOURCE has none.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of that split.", min=0)] = 0,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Skip photos that cannot be read.")
    ] = False,
    *,
    as_json: bool,
) -> None:
    """Import your own photos as square images in STL-10's layout.

    The class folders may also lie in folders called train and
    test (or training, testing). Images in val (valid,
    validation) join the training split, from which each run
    splits its validation images; without a test folder they are
    the test split. Each photo is turned upright, put on white
    where it is transparent, cropped to its central square and
    resized. Files such as notes.txt and Thumbs.db are skipped.

    Examples:
    stl10bench data import photos --data-dir mine
    stl10bench data import photos --data-dir mine --size 160
    """
    counts = image_folder.import_folder(
        source,
        data_dir,
        size=size,
        test_fraction=test_fraction,
        seed=seed,
        skip_broken=skip_broken,
    )
    folder = str(data_dir / FOLDER)
    skipped = "1 file" if counts["skipped"] == 1 else f"{counts['skipped']:,} files"
    sentence = (
        f"Wrote {folder}: {counts['classes']} classes, {counts['train']:,} training and "
        f"{counts['test']:,} test images; {skipped} skipped"
    )
    _answer(sentence, {"folder": folder, "image_size": size, **counts}, as_json)


def _answer(sentence: str, facts: dict[str, Any], as_json: bool) -> None:
    typer.echo(json.dumps(facts) if as_json else sentence)
