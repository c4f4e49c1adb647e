"""Test images -> PNG files, where the very data of a run are at hand."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from stl10bench.data.stl10 import FOLDER, open_dataset


def pngs(data_dir: Path, dataset: str, fingerprint: str, rows: Sequence[int]) -> list[bytes] | None:
    """The images `rows` of the test split as PNG files, 96x96 px; None where they are not here.

    The demo data lie in the subfolder `demo`. Raises DataError, StorageError for data that are
    there, but damaged.
    """
    folder = data_dir / "demo" if dataset == "demo" else data_dir
    if not (folder / FOLDER).is_dir():
        return None
    data = open_dataset(folder, verify=False)  # the fingerprint says whether they are the run's
    if data.fingerprint != fingerprint or max(rows, default=0) >= len(data.test.images):
        return None
    found = []
    for row in rows:
        buffer = io.BytesIO()
        Image.fromarray(data.test.images[row].transpose(1, 2, 0)).save(buffer, "PNG", optimize=True)
        found.append(buffer.getvalue())
    return found
