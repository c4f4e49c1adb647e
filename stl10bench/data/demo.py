"""Ten classes drawn by code -> files in STL-10's layout: data to try everything on, not STL-10."""

from pathlib import Path

import numpy as np

from stl10bench import files
from stl10bench.data.drawing import draw
from stl10bench.data.stl10 import CLASS_NAMES, FOLDER, MARKER, NEEDED, open_dataset
from stl10bench.errors import DataError, StorageError

GENERATOR = 1  # raised when the same seed begins to draw other images
FOLDS = 10


def make_demo(data_dir: Path, *, train: int = 2000, test: int = 1000, seed: int = 0) -> None:
    """Write the demo data as `data_dir`/stl10_binary, whole or not at all.

    Every image is a function of (seed, split, index), classes take turns, and the folds hold a
    fifth of the train split each. The same data that are there already stay as they are. Raises
    DataError when anything else lies there, StorageError when it cannot be written.
    """
    folder = data_dir / FOLDER
    made = {"generator": GENERATOR, "seed": seed, "train": train, "test": test}
    if folder.exists():
        if (folder / MARKER).exists():
            marker = files.read_json(folder / MARKER, DataError)
            if made.items() <= marker.items():
                open_dataset(data_dir)  # raises if it is no longer what was drawn
                return
        raise DataError(f"{folder} exists already: move it away, or use another --data-dir")
    try:
        with files.new_folder(folder) as part:
            _write(part, train, test, seed)
            sums = {name: files.digests(part / name, "sha256")[0] for name in NEEDED}
            files.write_json(part / MARKER, {**made, "sha256": sums})
    except OSError as error:
        raise StorageError(f"cannot write the demo data {folder}: {error}") from error


def _write(folder: Path, train: int, test: int, seed: int) -> None:
    for split, (name, count) in enumerate((("train", train), ("test", test))):
        labels = np.arange(count) % len(CLASS_NAMES)
        with (folder / f"{name}_X.bin").open("wb") as file:
            for index, label in enumerate(labels):
                planes = draw(int(label), seed, split, index).transpose(2, 1, 0)
                file.write(planes.tobytes())  # channel, column, row
        (folder / f"{name}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    rng = np.random.default_rng(np.random.SeedSequence((seed, 2)))
    folds = [np.sort(rng.choice(train, max(1, train // 5), replace=False)) for _ in range(FOLDS)]
    lines = "".join(" ".join(map(str, fold)) + " \n" for fold in folds)
    (folder / "fold_indices.txt").write_text(lines)
