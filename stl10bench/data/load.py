"""A dataset's name -> its checked files, drawn or downloaded first where needed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from stl10bench.core import files
from stl10bench.core.errors import DataError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from stl10bench.data.stl10 import Dataset

DATASETS = ("stl10", "demo")


def open_data(
    dataset: str,
    data_dir: str | Path | None,
    *,
    download: bool,
    verify: bool,
    console: "Console",
    dry: bool = False,
) -> "Dataset":
    """The dataset in `data_dir` (default: $STL10BENCH_DATA, else `data`), checked.

    The demo data lie in its subfolder `demo` and are drawn if they are missing; STL-10 is
    downloaded only with `download`. Processes of one machine take turns. With `dry` nothing is
    written: demo data are drawn in memory, and what is not downloaded is missing. Raises UsageError
    for an unknown name, else as `open_dataset`, `make_demo` and `download_stl10` do.
    """
    if dataset not in DATASETS:
        raise unknown("dataset", dataset, DATASETS)
    # Here, as `--help` needs DATASETS alone: these import NumPy, Pillow and an HTTP client.
    from stl10bench.data.demo import draw_demo, make_demo
    from stl10bench.data.download import download_stl10
    from stl10bench.data.stl10 import FOLDER, open_dataset

    folder = data_folder(data_dir)
    if dataset == "demo":
        folder /= "demo"
        if not (folder / FOLDER).exists():
            console.print("Drawing the demo data (about 20 s)")
            if dry:
                return draw_demo(folder)
            with files.locked(folder / ".lock", lambda: f"{folder} is in use"):
                make_demo(folder)  # nothing is left to do if another process was first
    elif download and not dry:
        with files.locked(folder / ".lock", lambda: f"{folder} is in use"):
            download_stl10(folder, console=console)
    data = open_dataset(folder, verify=verify, stamp=not dry)
    if dataset == "demo" and data.name != "demo":
        raise DataError(f"{folder} does not hold the demo data: move it away, or pass --data-dir")
    return data


def data_folder(data_dir: str | Path | None) -> Path:
    """`data_dir`, else $STL10BENCH_DATA, else `data`."""
    return Path(data_dir or os.environ.get("STL10BENCH_DATA") or "data")
