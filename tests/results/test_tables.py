"""Rows as tables: the same numbers in every format, and nobody's name breaks one."""

import csv
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import HOSTILE, Page, cells_of, row_of, row_values, shown, store, with_hits
from hypothesis import given
from hypothesis import strategies as st

from stl10bench.core.console import clean
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.results import history
from stl10bench.results.benchmark_table import FORMATS, stored_rows
from stl10bench.results.labels import row_label, row_labels
from stl10bench.results.rows import Failure, Row
from stl10bench.results.run_folder import RunFolder


def failed(model: str = "cnn", error: str = "diverged: at step 3, lower --lr") -> Failure:
    return Failure(model=model, error=error)


_UNRANKED = dict.fromkeys(("runs", "runs_asked", "vs_best")) | {"repeats": ()}


@pytest.mark.parametrize("style", ["table", "markdown", "latex", "html"])
def test_every_format_says_the_same_numbers(style: str) -> None:
    rows = [row_of("cnn", 0.75, test_loss=None), row_of(accuracy=0.4321)]
    ranked = [Row.model_validate(values) for values in json.loads(shown(rows, "json"))]
    assert [row.model_copy(update=_UNRANKED) for row in ranked] == rows
    lines = list(csv.DictReader(io.StringIO(shown(rows, "csv"))))
    assert (float(lines[1]["test_accuracy"]), int(lines[1]["parameters"])) == (0.4321, 6457482)
    assert (lines[1]["accuracy_low"], lines[1]["accuracy_high"]) == ("0.4196", "0.4446")
    text = shown(rows, style)
    assert "STL-10, 8,000 test images" in text
    assert cells_of(text, style) == [
        [
            *("model", "test loss", "test accuracy [95 %]", "vs best", "parameters", "trainable"),
            *("MACs", "px", "precision", "train s", "images/s"),
        ],
        [
            *("cnn", "-", "0.750 [0.738, 0.762]", "best", "6,457,482", "12,345"),
            *("6.46M", "64", "fp32", "1,234", "1,500"),
        ],
        [
            *("mlp", "1.250", "0.432 [0.420, 0.445]", "-", "6,457,482", "12,345"),
            *("6.46M", "64", "fp32", "1,234", "1,500"),
        ],
    ]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("style", FORMATS)
def test_no_name_or_reason_breaks_a_table(style: str, hostile: str) -> None:
    rows = [row_of(model=hostile, dataset=hostile), failed(error=hostile)]
    text = shown(rows, style)
    assert "\x1b" not in text
    if style == "json":
        assert json.loads(text)[0]["model"] == hostile
    elif style == "csv":
        first, second = csv.DictReader(io.StringIO(text))
        assert first["model"].lstrip("'") == clean(hostile)
        for cell in (*first.values(), *second.values()):
            assert cell.lstrip()[:1] not in tuple("=@+-"), "a spreadsheet would run it"
    elif style == "markdown":
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) == 4
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {11}
        assert not re.findall(r"(?<!\\)([<>`_]|\]\()", text)
    elif style == "html":
        page = Page(text)
        assert page.rows[1][0] == clean(hostile)
        assert page.tags <= {
            *("html", "head", "meta", "title", "style", "body", "table", "caption"),
            *("thead", "tbody", "tr", "th", "td", "p"),
        }
    elif style == "latex":
        _, first, second = cells_of(text, style)
        assert (first[0], len(first), len(second)) == (clean(hostile), 10, 10)
        bare = re.sub(r"\\[&%$#_{}]|\\text[a-z]+\{\}", "", text.partition("\n")[2])
        assert not re.findall(r"[%$#_~^<>|]", bare)
        assert bare.count("{") == bare.count("}")
        assert "\n[" not in text, "it would be an argument of the row's end"
        assert "--" not in text, "it would be a dash"
    else:
        assert clean(hostile).strip() in text


@given(st.text(), st.text())
def test_any_text_gives_one_line_a_row_in_csv(model: str, error: str) -> None:
    lines = list(csv.reader(io.StringIO(shown([row_of(model=model), failed(error=error)], "csv"))))
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 240])
def test_a_table_fits_the_terminal_and_never_loses_model_or_accuracy(width: int) -> None:
    rows = [row_of(), row_of("mobilenetv2", 0.75, model_options={"freeze": True}, pretrained=True)]
    text = shown(rows, "table", width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "0.750 [0.738, 0.762]" in text
    assert ("no room for" in text) == (width < 150)


def test_a_pipe_has_all_columns_unless_the_environment_says_how_many_fit(
    tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path / "runs", with_hits(row_of()))
    assert "images/s" in cli("table")[1]
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = cli("table")
    assert ("images/s" in out.splitlines()[2], "no room for" in out) == (False, True)
    assert max(map(len, out.splitlines())) <= 80


def test_eighty_columns_show_the_loss_rather_than_the_size() -> None:
    rows = [
        row_of(f"mobilenetv2_{lr}", 0.75, config={"lr": lr}, model_options={"freeze": True})
        for lr in (0.1, 0.01)
    ]
    header = shown([with_hits(row) for row in rows], "table", 80).splitlines()[2]
    assert "test loss" in header
    assert "vs best" in header
    assert "px" not in header


@pytest.mark.parametrize("style", ["table", "markdown"])
def test_rows_stand_best_first_baselines_among_them_and_failures_last(style: str) -> None:
    accuracies = {"a": 0.311, "b": 0.625, "c": 0.344, "d": 0.25}
    rows = [with_hits(row_of(model, share)) for model, share in accuracies.items()]
    lines = cells_of(shown([failed(), *rows], style, baselines=True), style)
    assert [line[0] for line in lines[1:]] == [
        *("b", "chance (baseline)", "constant class (baseline)", "c", "a", "d"),
        *(["cnn"] if style == "markdown" else []),
    ]
    combined = [
        row_of(name[0], share, run=name, config={"model": name[0], "seed": int(name[1])})
        for name, share in {"a0": 0.9, "a1": 0.1, "b0": 0.75, "b1": 0.5}.items()
    ]
    lines = cells_of(shown(combined, style), style)
    assert [line[0] for line in lines[1:]] == ["b", "a"]


def test_a_default_column_without_any_value_is_left_out() -> None:
    rows = [row_of(macs=None, precision=None), row_of("cnn", macs=None)]
    header, *_ = cells_of(shown(rows, "markdown"), "markdown")
    assert "MACs" not in header
    assert "precision" in header
    chosen = cells_of(shown(rows, "markdown", columns=("macs", "seed")), "markdown")
    assert chosen[0] == ["model", "MACs", "seed"]


def test_a_column_of_which_only_another_table_has_values_is_left_out() -> None:
    config = {"data": "0123456789abcdef", "unlabeled": "rest"}
    rows = [row_of(), row_of("cnn", unlabeled_used=4000, config=config)]
    first, second = shown(rows, "markdown").split("unlabelled images are used too")
    assert ("unlabelled |" in first, "unlabelled |" in second) == (False, True)


def test_columns_that_were_asked_for_are_all_there_on_a_narrow_terminal() -> None:
    keys = ("vs_best", "train_seconds", "note", "optimizer", "parameters", "contamination")
    rows = [
        with_hits(row_of(model, note=f"first try of {model} " * 3, precision="bf16"))
        for model in ("mobilenetv2", "logistic")
    ]
    for width in (60, 80):
        text = shown(rows, "table", width, columns=keys)
        assert max(map(len, text.splitlines())) <= width
        assert "no room for" not in text
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        assert "".join(text.split()).count("try") == 6
    assert "note" in text.splitlines()[3]


def test_the_model_is_no_column_twice() -> None:
    assert cells_of(shown([row_of()], "markdown", columns=("model", "note")), "markdown") == [
        ["model", "note"],
        ["mlp", "-"],
    ]
    assert shown([row_of()], "markdown", columns=("model",)).count("model") == 1


def test_csv_tells_protocols_and_folds_apart() -> None:
    few = {"data": "0123456789abcdef", "labels_per_class": 10, "unlabeled": "rest"}
    folds = [
        row_of("mlp", run=f"mlp-{fold}", config={"data": "0f", "fold": fold, "val_fraction": 0.0})
        for fold in (3, 4)
    ]
    facts = {"unlabeled_used": 4900, "labels_used": 100, "copies_dropped": 1, "method": "fixmatch"}
    rows = [row_of("cnn"), row_of("cnn", run="cnn-1", config=few, **facts), *folds]

    def told(*keys: str, **view: Any) -> list[tuple[str, ...]]:
        lines = csv.DictReader(io.StringIO(shown(rows, "csv", **view)))
        return sorted(tuple(line[key] for key in keys) for line in lines)

    assert told("model", "protocol", "fold", "labels_per_class", combine=False) == [
        ("cnn", "0123456789ab-10-per-class-and-unlabelled-validation-m1", "", "10"),
        ("cnn", "0123456789ab-full-validation-m1", "", ""),
        ("mlp", "0f-fold-validation-m1", "3", ""),
        ("mlp", "0f-fold-validation-m1", "4", ""),
    ]
    assert told("model", "fold")[-1] == ("mlp", ""), "the mean of both is of none of them"
    keys = ("method", "labels_used", "unlabeled_used", "copies_dropped", "contamination")
    assert told(*keys)[0] == ("fixmatch", "100", "4900", "1", "none")


def test_a_failed_run_says_why_in_its_place() -> None:
    text = shown([row_of(), failed(), row_of("cnn")], "table")
    table, _, reason = text.partition("cnn #2: ")
    models = [line.split()[0] for line in table.splitlines() if re.match(r" ?(mlp|cnn) ", line)]
    assert models == ["mlp", "cnn", "cnn"]
    assert reason.startswith("failed: diverged: at step 3")


def test_a_long_reason_stands_in_full_below_the_table() -> None:
    reason = "A frozen backbone with random weights cannot learn. Pass --weights FILE."
    text = shown([row_of(), failed("mobilenetv2", reason)], "table", width=100)
    assert f"mobilenetv2: failed: {reason}" in " ".join(text.split())


@pytest.mark.parametrize("style", ["table", "markdown", "latex", "html"])
def test_a_reason_widens_no_column_and_a_page_of_it_is_cut_with_where_all_of_it_is(
    style: str,
) -> None:
    failure = Failure(run="cnn-1a2b3c4d", model="cnn", error="out of memory " * 200)
    text = shown([row_of(), failure], style)
    assert max(len(line) for line in text.splitlines() if "cnn" not in line) < 1000
    assert "runs show cnn-1a2b3c4d" in text
    assert text.count("out of memory") < 10
    if style == "table":
        short = Failure(run="cnn-1a2b3c4d", model="cnn", error="full")
        assert text.splitlines()[:3] == shown([row_of(), short], style).splitlines()[:3]


def test_a_failed_run_alone_is_a_table_too() -> None:
    assert "diverged" in shown([failed()], "table")
    assert "diverged" in shown([failed()], "markdown")


@pytest.mark.parametrize(
    ("other", "label"),
    [
        ({}, "mlp"),
        ({"selection": "last epoch"}, "mlp (last epoch)"),
        ({"stacked": 8}, "mlp"),
        ({"model_options": {"freeze": True}, "pretrained": True}, "mlp (frozen)"),
        ({"model_options": {"freeze": False}, "pretrained": True}, "mlp (fine-tuned)"),
        ({"model_options": {"freeze": False}}, "mlp (from scratch)"),
        (
            {
                "model_options": {"hidden": [64, 32], "dropout": 0.2},
                "config": {"data": "", "model_options": {"hidden": [64, 32]}},
            },
            "mlp (hidden 64-32)",
        ),
    ],
)
def test_a_label_says_what_is_trained_and_which_options_differ(other: Any, label: str) -> None:
    assert row_label(row_of(**other)) == label


def test_only_the_official_images_are_called_stl10() -> None:
    title = shown([row_of(dataset="STL-10")], "markdown").splitlines()[0]
    assert title == "STL-10, 8,000 test images"
    other = shown([row_of(dataset="STL-10 layout")], "markdown").splitlines()[0]
    assert other == "STL-10 layout 0123456789ab: not the STL-10 images, 8,000 test images"
    demo = shown([row_of(dataset="demo")], "markdown").splitlines()[0]
    assert demo == "demo 0123456789ab: drawn images, not STL-10, 8,000 test images"


def test_a_title_says_that_unlabelled_images_are_used_too_and_on_which_fold() -> None:
    config = {"data": "0" * 64, "val_fraction": 0.0, "unlabeled": "all", "fold": 3}
    row = row_of(config=config, fold_overlap=0.175)
    title = shown([row], "markdown").splitlines()[0]
    assert title.endswith("test images, trained on fold 3; unlabelled images are used too")
    other = row_of("cnn", config=config | {"fold": 4}, fold_overlap=0.175)
    assert "pairwise; unlabelled images are" in shown([row, other], "markdown").splitlines()[0]
    combined = row.model_copy(update={"runs": 10})
    assert "which share 17.5% of their images" in shown([combined], "markdown").splitlines()[0]


def test_data_are_never_mixed_in_one_table() -> None:
    text = shown([row_of(), row_of("cnn", dataset="demo")], "table")
    first, second = text.split("demo 0123456789ab: drawn")
    assert ("mlp" in first, "cnn" in first) == (True, False)
    assert ("mlp" in second, "cnn" in second) == (False, True)


def test_two_demos_are_two_tables() -> None:
    other = {"data": "fedcba"}
    text = shown([row_of(dataset="demo"), row_of("cnn", dataset="demo", config=other)], "markdown")
    assert re.findall(r"demo (\w+): drawn", text) == ["0123456789ab", "fedcba"]


def test_a_failed_run_is_listed_once_where_there_are_no_tables() -> None:
    rows = [row_of(), failed(), row_of("cnn", dataset="demo")]
    assert [row["model"] for row in json.loads(shown(rows, "json"))] == ["mlp", "cnn", "cnn"]
    assert shown(rows, "csv").count("diverged") == 1


def test_columns_are_entries_of_the_row_its_settings_and_its_models_options() -> None:
    config = {"data": "", "lr": 0.0001, "epochs": 7}
    rows = [row_of(model_options={"hidden": [64, 32]}, config=config)]
    columns = ("lr", "hidden", "epochs", "test_ece")
    assert "| mlp | 1e-4 | 64-32 | 3 | - |" in shown(rows, "markdown", columns=columns)
    csv_text = shown(rows, "csv", columns=columns)
    assert csv_text == 'label,lr,hidden,epochs,test_ece\nmlp,0.0001,"[64, 32]",3,\n'
    (row,) = json.loads(shown(rows, "json", columns=columns))
    assert row == {"label": "mlp", "lr": 0.0001, "hidden": [64, 32], "epochs": 3, "test_ece": None}


def order(rows: list[Row], **view: Any) -> list[Any]:
    return [row["model"] for row in json.loads(shown(rows, "json", **view))]


def test_rows_are_sorted_by_a_column_and_what_lacks_it_comes_last() -> None:
    rows = [
        row_of("b", 0.2),
        row_of("none", 0.3, test_loss=None),
        row_of("a", 0.1, test_loss=2.5),
        row_of("c", 0.4, test_loss=0.5),
    ]
    assert order(rows) == ["c", "none", "b", "a"]
    assert order(rows, sort="test_loss") == ["c", "b", "a", "none"]
    assert order(rows, sort="test_loss", descending=True) == ["a", "b", "c", "none"]
    assert order(rows, sort="test_accuracy") == ["a", "b", "none", "c"]
    assert order(rows, sort="model") == ["a", "b", "c", "none"]


@pytest.mark.parametrize("view", [{"columns": ("test_acuracy",)}, {"sort": "test_acuracy"}])
def test_an_unknown_column_says_the_nearest(view: Any) -> None:
    with pytest.raises(UsageError, match="unknown column 'test_acuracy': did you mean 'test_acc"):
        shown([row_of()], "table", **view)


def test_stored_rows_are_found_and_old_ones_left_out(tmp_path: Path) -> None:
    for name, accuracy in (("b", 0.9), ("a", 0.1), ("c", 0.5), ("c-0.old-1", 0.7)):
        store(tmp_path, with_hits(row_of(name, accuracy, run=name)))
    (tmp_path / "unfinished").mkdir()
    rows, damaged = stored_rows(tmp_path)
    assert ([row.model for row in rows], damaged) == (["a", "b", "c"], [])


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "NaN", "[" * 5000])
def test_a_damaged_result_is_named_and_hides_no_other(tmp_path: Path, content: str) -> None:
    store(tmp_path, with_hits(row_of("cnn")))
    store(tmp_path, row_of()).result_file.write_text(content)
    rows, damaged = stored_rows(tmp_path)
    assert [row.model for row in rows] == ["cnn"]
    assert [error.exit_code for error in damaged] == [4]
    assert "mlp-0/result.json" in str(damaged[0])


def test_a_row_without_its_predictions_is_shown_and_named(tmp_path: Path) -> None:
    store(tmp_path, row_of())
    rows, damaged = stored_rows(tmp_path)
    assert ([row.model for row in rows], len(damaged)) == (["mlp"], 1)
    assert "mlp-0/predictions.safetensors is missing" in str(damaged[0])


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_command_shows_the_good_rows_and_ends_with_the_code_of_the_damaged(
    tmp_path: Path, cli: Any
) -> None:
    store(tmp_path / "runs", with_hits(row_of("cnn")))
    assert cli("table")[0] == 0
    damaged = store(tmp_path / "runs", row_of())
    damaged.result_file.write_text("{")
    code, out, err = cli("table", "--format", "csv")
    assert code == 4
    assert [line["run"] for line in csv.DictReader(io.StringIO(out))][-1] == "cnn-0"
    assert "warning: runs/mlp-0/result.json" in err
    (tmp_path / "runs" / "cnn-0" / "result.json").unlink()
    code, out, err = cli("table")
    assert (code, out) == (4, "")
    assert "error: runs/mlp-0/result.json" in err


HITS = "f" * 1000 + "0" * 1000  # the first 4000 of 8000 images


@pytest.mark.parametrize(
    ("other", "where"),
    [
        ({"test_accuracy": 1.5}, "test_accuracy"),
        ({"test_accuracy": float("nan")}, "test_accuracy"),
        ({"test_ece": -0.1}, "test_ece"),
        ({"test_loss": float("inf")}, "test_loss"),
        ({"test_images": 0}, "test_images"),
        ({"test_hits": "0x" + HITS}, "test_hits"),
        ({"test_hits": HITS[2:]}, "test_hits: must be 8000 bits, 4000 of them set"),
        ({"test_hits": HITS + "00"}, "test_hits: must be 8000 bits"),
        ({"test_hits": "7" + HITS[1:]}, "4000 of them set"),
        ({"test_hits": "10\n"}, "test_hits"),
        ({"test_hits": HITS, "test_images": 7999, "test_accuracy": 4000 / 7999}, ""),
        (
            {"test_hits": "7" + HITS[1:-1] + "1", "test_images": 7999, "test_accuracy": 0.50006},
            "test_hits: must be 7999 bits",
        ),
        ({"confusion": [[4000, 4000]]}, "must have as many columns as rows"),
        ({"confusion": [[4000, 4000], [0, 1]]}, "confusion: must count 8000 images"),
        ({"confusion": [[3999, 4001], [0, 0]]}, "4000 of them correct"),
        ({"confusion": [[4001, 4000], [0, -1]]}, "confusion"),
        ({"confusion": [[4000, 4000], [0, 0]], "test_hits": HITS}, ""),
        ({"confusion": []}, "must have as many columns as rows"),
    ],
)
def test_a_row_whose_counts_do_not_agree_is_refused(
    tmp_path: Path, other: dict[str, Any], where: str
) -> None:
    folder = store(tmp_path, row_values(**other))
    if where:
        with pytest.raises(CheckpointError, match=rf"mlp-0/result\.json.*{where}"):
            folder.row()
    else:
        assert folder.row().test_hits == HITS


@pytest.mark.parametrize(
    ("words", "models"),
    [
        (["cnn-0"], {"cnn"}),
        (["cn", "runs/mlp-0/result.json"], {"cnn", "mlp"}),
        (["--where", "model=cnn"], {"cnn"}),
        (["--where", "lr=1e-3", "--where", "model=MLP"], {"mlp"}),
        (["--where", "freeze=yes"], {"timm:x"}),
        (["runs/timm-x"], {"timm:x"}),
        (["mlp", "--where", "lr=0.001"], {"mlp"}),
    ],
)
def test_a_table_shows_the_runs_that_are_named_or_sought(
    tmp_path: Path, cli: Any, words: list[str], models: set[str]
) -> None:
    backbone = row_of("timm:x", run="timm-x", model_options={"freeze": True})
    mlps = [row_of("mlp", config={"lr": 0.001}), row_of("mlp", run="mlp-1")]
    for row in (row_of("cnn"), *mlps, backbone):
        folder = store(tmp_path / "runs", with_hits(row))
        folder.config_file.write_text("{}")
    code, out, err = cli("table", *words, "--format", "json", "--no-baselines")
    assert (code, err) == (0, "")
    assert {row["model"] for row in json.loads(out)} == models


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["mpl"], "unknown run 'mpl'"),
        (["--where", "model"], "--where model: must be COLUMN=VALUE"),
        (["--where", "modle=cnn"], "unknown column 'modle': did you mean 'model'"),
        (["--where", "model=vit"], "no finished run with model=vit in runs"),
    ],
)
def test_what_a_table_cannot_find_is_told(
    tmp_path: Path, cli: Any, words: list[str], text: str
) -> None:
    store(tmp_path / "runs", with_hits(row_of())).config_file.write_text("{}")
    code, out, err = cli("table", *words)
    assert (code, out) == (2, "")
    assert text in err


def test_runs_are_looked_for_where_the_environment_says(
    tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path / "elsewhere", with_hits(row_of()))
    monkeypatch.setenv("STL10BENCH_RUNS", "elsewhere")
    assert "mlp" in cli("table")[1]


def test_the_table_needs_no_torch(tmp_path: Path) -> None:
    store(tmp_path, with_hits(row_of()))
    store(tmp_path, with_hits(row_of("cnn", 0.25)))
    code = (
        "import sys; from stl10bench.cli.main import main\n"
        f"sys.argv = ['stl10bench', 'table', '--runs-dir', {str(tmp_path)!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'timm') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "best" in ended.stdout
    assert "worse" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("content", ['{"model": "x"}', '{"test_accuracy": "high"}', "{}"])
def test_a_result_that_lacks_what_a_row_needs_is_named(tmp_path: Path, content: str) -> None:
    folder = store(tmp_path, row_of())
    folder.result_file.write_text(content)
    with pytest.raises(CheckpointError, match=r"mlp-0/result\.json"):
        folder.row()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"precision": "\x1b[2J"}, "precision"),
        ({"precision": "a|b"}, "precision"),
        ({"macs": 10**400}, "macs"),
        ({"macs": -1}, "macs"),
        ({"train_seconds": -1.0}, "train_seconds"),
        ({"test_accuracy": float("nan")}, "test_accuracy"),
        ({"test_accuracy": 1.5}, "test_accuracy"),
        ({"test_accuracy_interval": [0.1, float("inf")]}, "test_accuracy_interval.1"),
        ({"config": {"data": "\x1b[31mred"}}, "config"),
        ({"model_options": {"hidden": [[[[1]]]]}}, "model_options.hidden"),
        ({"model_options": {"\x1b[2J" * 100: {}}}, r"model_options. \[2J \[2J"),
    ],
)
def test_a_value_that_a_table_would_run_or_cannot_show_is_refused(
    tmp_path: Path, change: Any, place: str
) -> None:
    folder = store(tmp_path, row_values(**change))
    with pytest.raises(CheckpointError, match=rf"is not a run's result: {place}") as error:
        folder.row()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_an_unknown_format_says_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown format 'tabel': did you mean 'table'"):
        shown([row_of()], "tabel")


def test_names_are_as_short_as_tells_them_apart_and_never_the_same() -> None:
    def row(**config: Any) -> Row:
        return row_of(config=config)

    rows = [row(lr=1, epochs=2), row(lr=1, epochs=5), row(lr=1, epochs=5, warmup=0.5)]
    names = row_labels(rows)
    assert names == [
        *("mlp, epochs 2, warmup 0", "mlp, epochs 5, warmup 0", "mlp, epochs 5, warmup 0.5"),
    ]
    rows = [row(epochs=3), row(epochs=2), row(epochs=2, ema=0.999)]
    names = ["mlp, epochs 3, no EMA", "mlp, epochs 2, no EMA", "mlp, epochs 2, ema 0.999"]
    assert row_labels(rows) == names, "what a row leaves out would seem to be as above"
    names = labels({"unlabeled": "rest"}, {"unlabeled": None}, model="kmeans")
    assert names == ["kmeans, unlabeled rest", "kmeans, no unlabelled images"]
    assert row_labels([row(lr=1)] * 3) == ["mlp", "mlp #2", "mlp #3"]


def labels(*changes: dict[str, Any], model: str = "logistic", **options: Any) -> list[str]:
    rows = [
        row_of(model, config={"model": model, "model_options": options, **change})
        for change in changes
    ]
    return row_labels([row.model_copy(update={"model_options": options}) for row in rows])


def test_rows_of_one_model_say_what_differs_and_only_that() -> None:
    rates = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
    texts = ("0.1", "0.03", "0.01", "0.003", "0.001", "3e-4", "1e-4")
    names = labels(*({"lr": lr, "epochs": 7} for lr in rates))
    assert names == [f"logistic, lr {text}" for text in texts]
    names = labels(*({"lr": lr} for lr in rates), model="mlp", hidden=(64, 32))
    assert names == [f"mlp, lr {text}" for text in texts]


def test_the_one_run_with_adam_is_called_adam() -> None:
    usual = {"optimizer": "sgd", "lr": 0.0001, "batch_size": 128, "epochs": 30}
    others: list[dict[str, Any]] = [{"lr": 0.1}, {"lr": 0.01}, {}, {"batch_size": 32}]
    others += [{"batch_size": 64}, {"epochs": 60}, {"optimizer": "adam"}]
    assert labels(*(usual | other for other in others)) == [
        *("logistic, lr 0.1", "logistic, lr 0.01", "logistic, batch size 128, lr 1e-4"),
        *("logistic, batch size 32", "logistic, batch size 64", "logistic, epochs 60"),
        "logistic, adam",
    ]


def test_of_two_rows_all_is_said_in_which_they_differ() -> None:
    names = labels({"optimizer": "sgd", "precision": "no"}, {"rotation": (-30, 5)})
    assert names == [
        "logistic, sgd, rotation -10,10, fp32",
        "logistic, adamw, rotation -30,5, precision auto",
    ]


def test_a_default_of_the_method_is_told_from_another_value() -> None:
    rows = [
        row_of(config={"method": "probe", "method_options": given}).model_copy(
            update={"method_options": {"power": 0.5, "views": 1} | given}
        )
        for given in ({}, {"views": 2})
    ]
    assert row_labels(rows) == ["mlp (probe), views 1", "mlp (probe), views 2"]


def test_table_compare_and_plot_call_a_run_by_the_same_label(tmp_path: Path) -> None:
    rows = [row_of("mlp", run=f"mlp-{lr}", config={"model": "mlp", "lr": lr}) for lr in (0.1, 1e-4)]
    expected = ["mlp, lr 0.1", "mlp, lr 1e-4"]
    assert row_labels(rows) == expected
    assert [line[0] for line in cells_of(shown(rows, "markdown"), "markdown")[1:]] == expected
    for row in rows:
        folder = store(tmp_path, row)
        folder.config_file.write_text(json.dumps(row.config.model_dump(mode="json")))
        folder.log_file.write_text("")
    folders = [RunFolder(tmp_path / str(row.run)) for row in rows]
    shown_by_plot = history.labels([history.read(folder) for folder in folders])
    assert shown_by_plot == ("mlp", ["lr 0.1", "lr 1e-4"]), "the title says that they are mlps"


def test_labels_of_two_thousand_rows_take_a_moment() -> None:
    rows = [row_of(config={"lr": 1e-6 * number}) for number in range(1, 2001)]
    started = time.process_time()
    assert len(set(row_labels(rows))) == 2000
    assert time.process_time() - started < 5, "row by row with all others it takes a minute"


def test_rows_that_were_trained_together_say_so_in_a_note_about_their_seconds() -> None:
    text = shown([row_of(), row_of("cnn", stacked=8)], "markdown")
    assert [line[0] for line in cells_of(text, "markdown")[1:]] == ["mlp", "cnn"]
    assert "the seconds are those of all" in text


def test_a_note_of_version_0_1_0_says_validation_images() -> None:
    row = row_of(test_notes=["temperature: there is no hold-out to fit it on"])
    assert row.test_notes == ("temperature: no validation images to fit it on",)
