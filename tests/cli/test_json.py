"""`--json`: every command prints one JSON document to stdout, and all else to stderr."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.entry import leaves
from helpers.layout import save
from PIL import Image

OLD_RUNS = Path(__file__).parents[1] / "fixtures" / "runs-0.1.0"
RUN, OTHER = "logistic-3ccf0de0", "logistic-41747c87"
BATCH = "--image-size 8 --batch-size 8 --threads 1 --tracker none"
WORDS = {  # of each command, after its name
    "train": f"--config runs/{RUN}/config.json --tracker none",  # finished
    "pretrain": "simclr --backbone cnn --model-option channels=4 --model-option hidden=4 "
    "--epochs 1 --image-size 16 --batch-size 8 --threads 1 --tracker none",
    "evaluate": RUN,
    "benchmark": f"logistic --dry-run --epochs 1 {BATCH}",
    "table": "--columns lr",
    "compare": f"{RUN} {OTHER}",
    "report": RUN,
    "lr-find": "logistic --steps 5 --image-size 8 --batch-size 8 --threads 1",
    "reproduce": f"{RUN} --threads 1",
    "study list": "",
    "study show": "logistic-by-lr",
    "study run": f"logistic-lr --dry-run --epochs 1 {BATCH}",
    "models": "",
    "describe": "logistic --image-size 8",
    "predict": f"{RUN} photos/a/0.png",
    "export": f"{RUN} --to hub --output hub",
    "plot": RUN,
    "visualize samples": "--per-class 1",
    "visualize augmentations": "--draws 1",
    "visualize predictions": f"{RUN} --count 1",
    "visualize filters": RUN,
    "visualize gradcam": "cnn.safetensors --count 1",
    "visualize embedding": f"{RUN} --images 8",
    "rows share": f"{RUN} --output rows.tar",
    "rows verify": "rows.tar",
    "runs list": "",
    "runs show": RUN,
    "runs rm": RUN,
    "data download": "--from none.tar.gz",
    "data verify": "",
    "data audit": "",
    "data make-demo": "--train 10 --test 10",
    "data import": "photos --data-dir mine --size 8",
    "config show": "logistic",
    "config schema": "",
    "doctor": "",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished runs, a network and photos."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copytree(OLD_RUNS, folder / "runs")
    save(folder / "cnn.safetensors", "cnn", 16, channels=(4,), hidden=(4,))
    for number in range(8):
        photo = folder / "photos" / "ab"[number % 2] / f"{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(photo)
    return folder


@pytest.mark.usefixtures("quick_timings")
@pytest.mark.parametrize("command", leaves())
def test_stdout_is_one_json_object(
    cli: Any,
    data_dir: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setenv("STL10BENCH_DATA", str(data_dir))
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    if command == "rows verify":
        cli("rows", "share", RUN, "--output", "rows.tar")
    code, out, _ = cli(*command.split(), *WORDS[command].split(), "--json")
    content = json.loads(out)
    assert isinstance(content, dict)
    assert ("error" in content) == (command == "data download") == (code > 0)
