"""Comparisons of run folders: the statistics of their predictions, and what is refused."""

import csv
import html
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.finished import LABELS, make_run, scores
from helpers.layout import heavy_after
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

import stl10bench
from stl10bench.cli.main import main
from stl10bench.config import RunConfig
from stl10bench.results import predictions
from stl10bench.results.comparison import load_run


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """Three runs: mlp-aa, mlp-bb a little better, cnn-cc far better."""
    for name, strength in (("mlp-aa", 1.0), ("mlp-bb", 1.1), ("cnn-cc", 2.5)):
        make_run(tmp_path / "runs", name, strength)
    return tmp_path / "runs"


@pytest.fixture
def compare(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run the command; returns exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        command = ["stl10bench", "compare", "--runs-dir", str(runs_dir), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_without_names_the_best_run_of_each_model_is_compared(compare: Any, runs_dir: Path) -> None:
    for name, accuracy in (("mlp-aa", 0.7), ("mlp-bb", 0.6)):  # not by the test split
        path = runs_dir / name / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"val_accuracy": accuracy}))
    report = json.loads(compare("--json")[1])
    assert [run["run"] for run in report["runs"]] == ["cnn-cc", "mlp-aa"]
    (runs_dir / "cnn-cc" / "result.json").unlink()
    report = json.loads(compare("--json")[1])
    assert [run["run"] for run in report["runs"]] == ["mlp-bb", "mlp-aa"], "of one model: all"


def change_row(folder: Path, **facts: Any) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_model_of_which_no_run_is_known_to_be_the_best_is_left_out_and_named(
    compare: Any, runs_dir: Path
) -> None:
    for name in ("mlp-aa", "mlp-bb"):
        change_row(runs_dir / name, val_accuracy=None)
    code, out, err = compare()
    assert (code, out) == (2, "")
    text = "mlp (2 runs): which run is the best is not known without validation images"
    assert f"{text}; name the runs to compare, or pass --all" in " ".join(err.split())
    make_run(runs_dir, "logistic-dd", 0.5, val_accuracy=None)  # its only run
    code, out, err = compare("--json")
    assert [run["run"] for run in json.loads(out)["runs"]] == ["cnn-cc", "logistic-dd"]
    assert f"left out: {text}" in " ".join(err.split())
    assert compare("--all")[::2] == (0, "")


def test_of_runs_with_the_same_validation_accuracy_the_lowest_loss_is_the_best(
    compare: Any, runs_dir: Path
) -> None:
    change_row(runs_dir / "mlp-aa", val_loss=0.5)
    change_row(runs_dir / "mlp-bb", val_loss=0.6)
    assert "mlp-aa" in (out := compare("--json")[1])
    assert "mlp-bb" not in out


def test_the_caption_is_true_of_all_runs_and_a_column_says_what_each_was_trained_on(
    compare: Any, runs_dir: Path
) -> None:
    settings: dict[str, dict[str, Any]] = {
        "logistic-dd": {"fold": 2, "val_fraction": 0.0},
        "resnet9-ee": {"labels_per_class": 10, "val_fraction": 0.0, "unlabeled": "rest"},
        "kmeans-ff": {"k_fold": 5, "k_fold_part": 3},
    }
    for name, config in settings.items():
        make_run(runs_dir, name, 0.5, config=config_of(**config))
    code, out, err = compare("--format", "markdown", "mlp-aa", *settings)
    assert (code, err) == (0, "")
    assert out.startswith("STL-10, 600 test images\n")
    table = out.partition("Pair by pair")[0]
    cells = [
        [c.strip() for c in line.split("|")[1:4]] for line in table.splitlines() if "|" in line
    ]
    assert {tuple(line[1:]) for line in cells[2:]} == {
        ("mlp", "all labels"),
        ("logistic", "fold 2"),
        ("resnet9", "10 labels per class and unlabelled images"),
        ("kmeans", "all labels but part 3 of 5"),
    }
    make_run(runs_dir, "mlp-gg", 0.5, config=config_of(fold=2, val_fraction=0.0))
    out = compare("--format", "markdown", "logistic-dd", "mlp-gg")[1]
    assert "fold" in out.splitlines()[0]
    assert "trained on |" not in out, "it is the same for both"


def test_eighty_columns_wrap_the_model_and_what_it_was_trained_on(
    compare: Any, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, freeze in (("mobilenetv2-1a2b3c4d", True), ("mobilenetv2-5e6f7a8b", False)):
        options = {"model_options": {"freeze": freeze}, "pretrained": True}
        make_run(runs_dir, name, 2.0 + freeze, **options)
    table = compare("mobilenetv2-1", "mobilenetv2-5")[1].partition("Pair by pair")[0]
    assert all(word in table for word in ("(frozen)", "(fine-tuned)", "minus 2"))
    make_run(runs_dir, "resnet9-dd", 2.0, config=config_of(unlabeled="rest"))
    table = compare("mobilenetv2-1", "resnet9")[1].partition("Pair by pair")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert all(word in table for word in ("mobilenetv2-1a2b3c4d", "(frozen)", "unlabelled images"))


def test_the_name_of_a_model_means_all_of_its_finished_runs(compare: Any, runs_dir: Path) -> None:
    (runs_dir / "mlp-dd").mkdir()
    (runs_dir / "mlp-dd" / "config.json").write_text("{}")  # not finished
    make_run(runs_dir, "mlp-wide-ee", 1.0)
    report = json.loads(compare("mlp", "cnn", "--json")[1])
    assert [run["run"] for run in report["runs"]] == ["cnn-cc", "mlp-bb", "mlp-aa"]
    assert "unlabelled images:" not in compare("mlp")[1]


def test_all_finished_runs_are_compared_pair_by_pair(compare: Any, runs_dir: Path) -> None:
    (runs_dir / "unfinished").mkdir()
    make_run(runs_dir, "mlp-aa.old-1", 3.0)
    report = json.loads(compare("--all", "--json")[1])
    assert [run["run"] for run in report["runs"]] == ["cnn-cc", "mlp-bb", "mlp-aa"]
    pairs = [(pair["first"], pair["second"]) for pair in report["pairs"]]
    assert pairs == [("cnn-cc", "mlp-bb"), ("cnn-cc", "mlp-aa"), ("mlp-bb", "mlp-aa")]
    assert (report["test_images"], report["resamples"]) == (600, 10_000)

    p_values = []
    for pair in report["pairs"]:
        right = []
        for name in (pair["first"], pair["second"]):
            read = predictions.read(runs_dir / name / "predictions.safetensors")
            right.append(read.logits.argmax(1) == read.labels)
        only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
        assert [pair["only_first"], pair["only_second"]] == only
        assert pair["both"] + sum(only) + pair["neither"] == 600
        assert pair["difference"] == pytest.approx(right[0].mean() - right[1].mean())
        assert pair["p"] == pytest.approx(binomtest(only[0], sum(only)).pvalue, rel=1e-9)
        low, high = pair["interval"]
        assert low < pair["difference"] < high
        p_values.append(pair["p"])
    corrected = [pair["p_holm"] for pair in report["pairs"]]
    theirs = multipletests(p_values, method="holm")[1].tolist()
    assert corrected == pytest.approx(theirs, rel=1e-9, abs=0)


def test_every_format_says_the_same(compare: Any) -> None:
    pair = json.loads(compare("--json", "mlp-aa", "cnn-cc")[1])["pairs"][0]
    low, high = pair["interval"]
    cell = f"{pair['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    for style in ("table", "markdown"):
        out = compare("mlp-aa", "cnn-cc", "--format", style)[1]
        assert cell in out
        assert "<0.001" in html.unescape(out)
        assert "exact McNemar" in " ".join(out.split())
    (line,) = csv.DictReader(io.StringIO(compare("mlp-aa", "cnn-cc", "--format", "csv")[1]))
    assert {key: float(line[key]) for key in ("difference", "p", "p_holm", "low", "high")} == {
        **{key: pair[key] for key in ("difference", "p", "p_holm")},
        "low": low,
        "high": high,
    }


def test_the_matrix_holds_each_difference_once(compare: Any) -> None:
    pairs = json.loads(compare("--all", "--json")[1])["pairs"]
    signed = [f"{pair['difference']:+.3f}" for pair in pairs]
    lines = compare("--all", "--format", "markdown")[1].splitlines()
    assert lines[2] == "| run | model | test accuracy | minus 2 | minus 3 |"
    one, two, three = ([c.strip(" \\*") for c in line.split("|")[4:6]] for line in lines[4:7])
    assert (one, two, three) == (signed[:2], ["", signed[2]], ["", ""])


def test_a_run_is_named_by_its_name_a_beginning_of_it_or_a_path(
    compare: Any, tmp_path: Path
) -> None:
    elsewhere = make_run(tmp_path / "other", "mlp-dd", 1.5)
    report = json.loads(compare("--json", "mlp-aa", "cnn", str(elsewhere.path))[1])
    assert [run["run"] for run in report["runs"]] == ["cnn-cc", "mlp-dd", "mlp-aa"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["ml", "cnn"], "run 'ml' is ambiguous: mlp-aa (accuracy 0"),
        (["mlp-ax", "cnn"], "unknown run 'mlp-ax': did you mean 'mlp-aa'"),
        (["cnn", "cnn-cc"], "compare needs two finished runs or more; 1 given"),
        (["unfinished", "cnn"], "has no result.json: the run is not finished"),
        (["--format", "tabel"], "unknown format 'tabel': did you mean 'table'"),
        (["--format", "csv", "--json"], "--format csv and --json: must be one of them"),
        (["--runs-dir", "none"], "compare needs two finished runs or more; 0 in none"),
    ],
)
def test_what_cannot_be_named_is_told(
    compare: Any, runs_dir: Path, arguments: list[str], text: str
) -> None:
    (runs_dir / "unfinished").mkdir()
    (runs_dir / "unfinished" / "config.json").write_text("{}")
    code, out, err = compare(*arguments)
    assert code == 2
    assert text in (out if "--json" in arguments else err)


def config_of(**other: Any) -> dict[str, Any]:
    return {"data": "0123456789abcdef"} | other


@pytest.mark.parametrize(
    ("other", "code", "text"),
    [
        (
            {"config": config_of(data="fedcba9876543210")},
            2,
            "different data (STL-10 0123456789ab; STL-10 fedcba987654)",
        ),
        (
            {"config": config_of(input="crop")},
            2,
            "different parts of the images (the whole image; the central 64x64 px)",
        ),
        ({"labels": (LABELS + 1) % 3}, 2, "have different test labels"),
        ({"test_accuracy": 0.5}, 4, "does not belong to this run"),
        ({"test_loss": 0.1}, 4, "does not belong to this run"),
        ({"test_accuracy": "high"}, 4, "is not a run's result"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_with_what_differs(
    compare: Any, runs_dir: Path, other: dict[str, Any], code: int, text: str
) -> None:
    make_run(runs_dir, "other-dd", 1.0, **other)
    exit_code, out, err = compare("mlp-aa", "other-dd")
    assert (exit_code, out) == (code, "")
    assert "other-dd" in err
    assert text in err


def test_runs_of_different_resolutions_saw_the_same_images(compare: Any, runs_dir: Path) -> None:
    make_run(runs_dir, "other-dd", 1.0, image_size=96)
    make_run(runs_dir, "other-ee", 1.0, image_size=96, config=config_of(input="crop"))
    assert compare("mlp-aa", "other-dd", "other-ee")[0] == 0


@pytest.mark.filterwarnings("default::UserWarning")
def test_missing_and_damaged_predictions_are_named_and_hide_no_other_run(
    compare: Any, runs_dir: Path
) -> None:
    path = runs_dir / "mlp-bb" / "predictions.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, out, err = compare("--all", "--json")
    assert code == 4
    assert f"warning: {path} is damaged" in err
    assert [run["run"] for run in json.loads(out)["runs"]] == ["cnn-cc", "mlp-aa"]
    path.unlink()
    missing = f"{path} is missing: train the run again with --overwrite"
    code, out, err = compare("--all", "--json")
    assert (code, len(json.loads(out)["runs"])) == (4, 2)
    assert f"warning: {missing}" in err
    code, out, err = compare("mlp-aa", "mlp-bb")  # nothing is left to compare it with
    assert (code, out) == (4, "")
    assert missing in err
    code, out, err = compare("mlp-aa", "mlp-bb", "cnn-cc")
    assert (code, "cnn-cc" in out, missing in err) == (4, True, True)
    (runs_dir / "cnn-cc" / "predictions.safetensors").unlink()
    assert compare("--all")[0] == 4  # fewer than two are left


@pytest.mark.filterwarnings("default::UserWarning")
def test_other_peoples_names_stay_text(compare: Any, runs_dir: Path) -> None:
    hostile = "[red]|=x\x1b[2J"
    make_run(runs_dir, "other-dd", 1.0, model=hostile, run="=cmd()|<b>")
    for style in ("table", "markdown", "csv"):
        code, out, _ = compare("--all", "--format", style)
        assert code == 0
        assert "\x1b" not in out
    assert "'=cmd()|<b>" in compare("--all", "--format", "csv")[1]
    assert r"=cmd()\|&lt;b\>" in compare("--all", "--format", "markdown")[1]
    assert "[red]|=x [2J" in compare("--all")[1]
    make_run(runs_dir, "other-ee", 1.0, run="\x1b[2J", config=config_of(data="\x1b[2J"))
    code, _, err = compare("--all")
    assert code == 4  # a fingerprint is hexadecimal
    assert "\x1b" not in err


def test_equal_runs_do_not_differ(compare: Any, runs_dir: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "other", "mlp-aa", 1.0)
    report = json.loads(compare("--json", "mlp-aa", str(tmp_path / "other" / "mlp-aa"))[1])
    (pair,) = report["pairs"]
    assert (pair["difference"], pair["interval"], pair["p"]) == (0, [0, 0], 1)


def test_logits_that_are_not_finite_can_be_compared(runs_dir: Path) -> None:
    folder = make_run(runs_dir, "nan-dd", 1.0)
    logits = predictions.read(folder.predictions_file).logits
    logits[0] = np.nan
    predictions.save(folder.predictions_file, {"logits": logits, "labels": LABELS})
    row = json.loads(folder.result_file.read_text())
    row |= scores(logits, LABELS) | {"test_loss": None}
    folder.result_file.write_text(json.dumps(row))
    run = load_run(folder)
    assert run.hits.bit_count() == round(600 * row["test_accuracy"])


def test_two_trained_runs_are_compared_from_their_folders(
    data_dir: Path, tmp_path: Path, compare: Any
) -> None:
    options = {"image_size": 8, "epochs": 1, "batch_size": 8, "tracker": "none", "threads": 1}
    rows = [
        stl10bench.train(
            "logistic", data_dir=data_dir, runs_dir=tmp_path / "mine", seed=seed, **options
        )
        for seed in (0, 1)
    ]
    report = json.loads(compare("--runs-dir", str(tmp_path / "mine"), "--json")[1])
    assert {run["run"] for run in report["runs"]} == {row["run"] for row in rows}
    accuracies = sorted((row["test_accuracy"] for row in rows), reverse=True)
    assert report["pairs"][0]["difference"] == pytest.approx(accuracies[0] - accuracies[1])


def test_a_comparison_imports_no_torch() -> None:
    imported = heavy_after(
        "from stl10bench.results import comparison; from stl10bench.cli import results"
    )
    assert imported == "['numpy']"


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (2.5, "unlabelled images: helped by "),
        (1.1, "unlabelled images: no gain: +"),
        (0.5, "unlabelled images: hurt by "),
    ],
)
def test_one_run_with_unlabelled_images_is_compared_with_the_one_without(
    compare: Any, runs_dir: Path, strength: float, expected: str
) -> None:
    config = json.loads((runs_dir / "mlp-aa/config.json").read_text())
    without = RunConfig(**config).name
    (runs_dir / "mlp-aa").rename(runs_dir / without)
    make_run(runs_dir, "mlp-zz", strength, config={**config, "unlabeled": "rest"})
    code, out, err = compare("mlp-zz")
    assert code == 0, err
    assert expected in out
    assert "mlp-aa" in out


def test_a_run_without_its_twin_says_how_to_get_it(compare: Any, runs_dir: Path) -> None:
    config = json.loads((runs_dir / "mlp-aa/config.json").read_text())
    make_run(runs_dir, "mlp-zz", 1.0, config={**config, "unlabeled": "rest"})
    code, _, err = compare("mlp-zz")
    assert code == 2
    assert "train the same with --unlabeled none" in " ".join(err.split())
