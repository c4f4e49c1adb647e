"""`predict` and the errors of `export` as a user meets them."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.layout import NAMES
from PIL import Image

import stl10bench

HOSTILE = "=cmd|' C'[red]\n\x1b[31m.png"


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Two images and what is none, with names that are somebody else's."""
    (tmp_path / "photos").mkdir()
    for name in (HOSTILE, "plain.png"):
        Image.new("RGB", (50, 40), (200, 40, 60)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "x[bold]\n.txt").write_text("no image")
    return "photos"


def test_predict_prints_a_line_for_each_image_and_reports_the_rest(
    cli: Any, model: str, photos: str
) -> None:
    code, out, err = cli("predict", model, photos)
    assert code == 3
    lines = [line for line in out.splitlines() if ".png" in line]
    assert len(lines) == 2
    assert lines[0].strip().startswith("photos/=cmd|' C'[red]")
    assert "\x1b" not in out
    assert [name for name in NAMES if name in lines[1]] != []
    reason, count = err.splitlines()  # which formats there are depends on Pillow
    assert reason.startswith("photos/x[bold] .txt: cannot identify it as JPEG, PNG, WEBP, ")
    assert count == "cannot read 1 of 3 files as images"


def test_predict_gives_json_csv_and_python_the_same(
    cli: Any, model: str, photos: str, tmp_path: Path
) -> None:
    code, out, _ = cli("predict", model, photos, "--top", "2", "--json")
    found = json.loads(out)
    assert code == 3
    assert [one["file"] for one in found["images"]] == [f"photos/{HOSTILE}", "photos/plain.png"]
    assert found["broken"][0]["file"] == "photos/x[bold]\n.txt"
    code, out, _ = cli("predict", model, photos, "--top", "2", "--format", "csv")
    first, second = csv.DictReader(io.StringIO(out))
    assert first["file"].startswith("photos/=cmd|")
    best = found["images"][1]["predictions"][0]
    assert (second["class_1"], float(second["probability_1"])) == tuple(best.values())
    assert list(second) == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    (one,) = stl10bench.load(model).predict("photos/plain.png")
    assert one[1:] == ((best["class"],), (pytest.approx(best["probability"]),))


def test_predict_says_that_it_could_read_no_image_at_all(
    cli: Any, model: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for path, reason in (("empty", "the folder is empty"), ("no.jpg", "No such file")):
        code, out, err = cli("predict", model, path)
        assert (code, out, err.splitlines()[1]) == (3, "", "no image could be read")
        assert reason in err.splitlines()[0]


def test_predict_exits_with_0_when_every_file_is_an_image(cli: Any, model: str) -> None:
    Image.new("L", (3, 300), 7).save("thin.jpg")
    code, out, err = cli("predict", model, "thin.jpg", "--top", "1")
    assert (code, err) == (0, "")
    assert "thin.jpg" in out


def test_a_narrow_terminal_shows_fewer_classes_and_says_so(
    cli: Any, model: str, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "44")
    _, out, _ = cli("predict", model, "photos/plain.png", "--top", "4")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert re.search(r"no room for: [^(]*class 4, p 4", " ".join(plain.split()))
    assert max(map(len, plain.splitlines())) <= 44


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("predict nope.safetensors a.png", 4, "no checkpoint nope.safetensors"),
        ("predict photos a.png", 4, "is a folder without model.safetensors"),
        ("predict {model} a.png --format jsn", 2, "unknown format 'jsn'"),
        ("predict {model} a.png --device cdua", 2, "did you mean 'cuda'"),
        ("export {model} --to onxx --output m.onnx", 2, "did you mean 'onnx'"),
        ("export {model} --to onnx --output m.pt", 2, "must end in .onnx"),
        ("export {model} --to torch --output m.onnx", 2, "must end in .pt2"),
        (
            "export {model} --to hub --output {model}",
            2,
            "exists already: pass --overwrite to replace it",
        ),
        ("export {model} --to hub --output {model} --overwrite", 2, "is a file"),
        ("export {model} --to hub --output photos --overwrite", 2, "has other files"),
        ("export nope.safetensors --to hub --output h", 4, "no checkpoint nope.safetensors"),
        ("export {model} --to hub --output {model}/h", 7, "cannot write"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(
    cli: Any, model: str, photos: str, arguments: str, code: int, text: str
) -> None:
    found, out, err = cli(*arguments.format(model=model).split())
    assert (found, out) == (code, "")
    assert text in err
    assert len(err.strip().splitlines()) == 1


def test_a_run_folder_stands_for_its_tested_checkpoint(
    cli: Any, tmp_path: Path, data_dir: Path, photos: str
) -> None:
    tiny = ("--image-size", "8", "--epochs", "1", "--batch-size", "8", "--tracker", "none")
    data = ("--data-dir", str(data_dir))
    code, out, _ = cli("train", "logistic", *tiny, *data, "--val-fraction", "0", "--json")
    row = json.loads(out)
    run = f"runs/{row['run']}"
    assert row["checkpoint"].endswith("last.safetensors"), "no epoch is chosen"
    code, out, err = cli("evaluate", run, *data, "--json")
    assert (code, json.loads(out)["test_loss"]) == (0, row["test_loss"])
    assert json.loads(out)["checkpoint"] == f"runs/{row['checkpoint']}"
    assert cli("predict", run, f"{photos}/plain.png")[0] == 0
    assert cli("export", run, "--to", "hub", "--output", "hub")[0] == 0
    assert "test accuracy" in (tmp_path / "hub" / "README.md").read_text(), "its row is found"
    assert cli("evaluate", "hub", *data)[0] == 0
    (tmp_path / run / "result.json").unlink()
    for command in (("evaluate", run, *data), ("predict", run, photos)):
        code, _, err = cli(*command)
        assert code == 4
        assert f"the run {run} has no tested checkpoint: its state is finished" in err
