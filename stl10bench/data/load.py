"""A dataset's name -> its checked files; drawn or downloaded where that was asked for."""

import os
from pathlib import Path

from rich.console import Console

from stl10bench.core.errors import DataError, StorageError, unknown
from stl10bench.data.demo import make_demo
from stl10bench.data.download import download_stl10
from stl10bench.data.stl10 import Dataset, open_dataset

DATASETS = ("stl10", "demo")


def open_data(
    dataset: str,
    data_dir: str | Path | None,
    *,
    download: bool,
    verify: bool,
    console: Console,
) -> Dataset:
    """The dataset in `data_dir` (default: $STL10BENCH_DATA, else `data`), checked.

    The demo data lie in its subfolder `demo` and are drawn if they are missing; STL-10 is fetched
    only with `download`. Processes of one machine take turns. Raises UsageError, DataError.
    """
    if dataset not in DATASETS:
        raise unknown("dataset", dataset, DATASETS)
    from filelock import FileLock

    folder = data_folder(data_dir)
    if dataset == "demo":
        folder = folder / "demo"
    if dataset == "demo" or download:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            guard = FileLock(folder / ".lock").acquire()
        except OSError as error:
            raise StorageError(f"cannot write the data folder {folder}: {error}") from error
        with guard:
            if dataset == "demo":
                if not (folder / "stl10_binary").exists():
                    console.print("drawing the demo data (about 20 s)")
                    make_demo(folder)
            else:
                download_stl10(folder, console=console)
    data = open_dataset(folder, verify=verify)
    if dataset == "demo" and data.name != "demo":
        raise DataError(f"{folder} does not hold the demo data: move it away, or use --data-dir")
    return data


def data_folder(data_dir: str | Path | None) -> Path:
    """`data_dir`, else $STL10BENCH_DATA, else `data`."""
    return Path(data_dir or os.environ.get("STL10BENCH_DATA") or "data")
