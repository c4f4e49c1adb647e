"""The report: the numbers of the runs in each of its forms, whatever stands in their files."""

import base64
import hashlib
import html
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.finished import LABELS, scores
from helpers.layout import heavy_after, write_layout
from helpers.reports import NAMES, add_run, write_log
from helpers.rows import HOSTILE, cells_of
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from stl10bench.cli.main import main
from stl10bench.core.console import clean
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.data.stl10 import open_dataset
from stl10bench.metrics import calibration
from stl10bench.report.build import build_report
from stl10bench.report.html import html_page
from stl10bench.report.load import RunPredictions, load_groups, read_predictions
from stl10bench.report.predictions import agreement, confusion_section, mistakes
from stl10bench.report.studies import load_studies
from stl10bench.results import predictions
from stl10bench.results.run_folder import RunFolder
from stl10bench.studies import record
from stl10bench.studies.study import Study


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """mlp with two seeds, and a cnn that is far better."""
    for name, strength, seed in (("mlp-aa", 1.0, 0), ("mlp-bb", 1.1, 1), ("cnn-cc", 2.5, 0)):
        add_run(tmp_path / "runs", name, strength, seed=seed)
    return tmp_path / "runs"


@pytest.fixture
def report(
    runs_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Run the command; returns what it wrote, or its exit code and its error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Any:
        command = ["stl10bench", "report", "--runs-dir", str(runs_dir), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        if not captured.out:
            return ended.value.code, captured.err
        assert ended.value.code in (0, CheckpointError.exit_code)  # a file was damaged
        return Path(captured.out.rstrip("\n")).read_text(encoding="utf-8")

    return call


class Seen(HTMLParser):
    """The tables of a page, by their captions; the tags, attributes and words of all of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self._open: list[list[list[str]]] = []
        self._caption = self._quiet = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "table":
            self._open.append([])
        elif tag == "tr":
            self._open[-1].append([])
        elif tag in ("td", "th"):
            self._open[-1][-1].append("")
        self._caption = tag == "caption"
        self._quiet = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._caption = self._quiet = False
        if tag == "table":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._quiet:
            return
        self.words += data
        if self._caption:
            self.tables[data] = self._open[-1]
        elif self._open and self._open[-1] and self._open[-1][-1]:
            self._open[-1][-1][-1] += data


def test_the_page_shows_each_setting_as_the_table_does(report: Any, runs_dir: Path) -> None:
    lines = Seen(report()).tables["Results"]
    shown = [line[:2] for line in lines if len(line) > 1]
    rows = {setting.name: setting.row for setting in load_groups(runs_dir, [])[0].settings}
    assert sorted(line[0] for line in shown[3:]) == [  # of the same accuracy and loss
        *("chance (baseline)", "constant class (baseline)")
    ]
    for name, cell in shown[1:3]:
        low, high = rows[name].test_accuracy_interval
        assert cell == f"{rows[name].test_accuracy:.3f} [{low:.3f}, {high:.3f}]"
    runs = [line[0] for line in Seen(report()).tables["Runs of mlp"]]
    assert runs == ["run", "mlp-aa", "mlp-bb"]


def test_markdown_has_every_table_of_the_page_with_the_same_cells(
    report: Any, runs_dir: Path
) -> None:
    for number, lr in enumerate((0.001, 0.01, 0.1)):
        add_run(runs_dir, f"logistic-{number}", 1 + 0.1 * number, lr=lr)
    page = Seen(report()).tables
    text = report("--format", "markdown")
    written = [cells_of(part, "markdown") for part in text.split("\n\n") if part.startswith("|")]
    assert len(page) > 8
    for title, lines in page.items():
        pictures = [number for number, cell in enumerate(lines[0]) if cell == "interval"]
        whole = [
            [cell for number, cell in enumerate(line) if number not in pictures]
            for line in lines
            if len(line) == len(lines[0])
        ]
        assert [[plain(c) for c in line] for line in whole] in [
            [[plain(c) for c in line] for line in lines] for lines in written
        ], title


def plain(cell: str) -> str:
    return re.sub(r"\\(?=[<>*_`&|\[\]\\])", "", cell).strip()


def test_the_same_runs_give_the_same_bytes(report: Any) -> None:
    assert report("--output", "a.html") == report("--output", "b.html")


def test_a_note_is_said_once_for_all_that_it_concerns(report: Any, runs_dir: Path) -> None:
    every = "temperature: no validation images to fit it on"  # which all of these runs lack
    both, one = "latency: not known", "macs: not known"
    for name, strength, notes in (("cnn-dd", 2.4, [every, both, one]), ("mlp-ee", 1.2, [both])):
        add_run(runs_dir, name, strength, lr=0.1, test_notes=notes)
    (runs_dir / "mlp-aa" / "metrics.jsonl").unlink()
    (runs_dir / "mlp-bb" / "metrics.jsonl").unlink()
    text = report("--format", "markdown")
    notes = text.partition("## Notes")[2]
    for note in (every, both, one, "metrics.jsonl"):
        assert text.count(note) == 1
    assert f"cnn, lr 0.1; mlp, lr 0.1: {both}" in notes
    assert f"cnn, lr 0.1: {one}" in notes
    assert "mlp-bb; mlp-aa: " in notes
    (runs_dir / "mlp-ee" / "result.json").unlink()
    assert f"all 3 settings: {every}" in report("--format", "markdown")


@pytest.mark.parametrize("name", HOSTILE)
def test_other_peoples_names_stay_text(report: Any, runs_dir: Path, name: str) -> None:
    tags = set(Seen(report()).tags)
    folder = add_run(
        runs_dir,
        "mlp-dd",
        1.2,
        run=name,
        model=name,
        model_options={name[:20]: name},
        names=(name, f"{name}2", "cow"),
        cpu=name,
        commit=name,
        libraries={name: name},
        test_notes=[name],
    )
    folder.status_file.write_text(json.dumps({"state": "finished", "reason": name}))
    broken = runs_dir / "mlp-ee"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model": name or "x"}))
    (broken / "status.json").write_text(json.dumps({"state": "failed", "reason": name}))
    page, text = (report("--format", style, "--title", name) for style in ("html", "markdown"))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", page + text)
    seen = Seen(page)
    assert set(seen.tags) <= tags
    assert seen.tags.count("script") == seen.tags.count("style") == 1
    assert not [key for key, _ in seen.attributes if key.startswith("on") or key == "style"]
    assert clean(name) in seen.words
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside)
    assert not re.search(r"(?<!\\)\]\(", outside)


def test_the_policy_allows_the_one_style_and_the_one_script_and_no_address(report: Any) -> None:
    text = report()
    policy = dict(
        part.strip().split(" ", 1)
        for part in html.unescape(re.search(r'Policy" content="([^"]+)"', text)[1]).split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[rule] == f"'sha256-{digest}'"
    assert "://" not in text
    assert not re.search(r"url\(|@import|\bsrcset\b", text)


def test_agreement_is_the_share_and_cohens_kappa() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    second[:90] = first[:90]
    share, kappa = agreement(predicting(first), predicting(second))
    assert share == (first == second).mean()
    assert kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert agreement(predicting(first), predicting(first)) == (1, 1)
    same = predicting(np.zeros(5, np.int64))
    assert agreement(same, same) == (1, None)


def predicting(predicted: Any, labels: Any = None, confidences: Any = None) -> RunPredictions:
    labels = predicted if labels is None else labels
    confidences = np.ones(len(predicted)) if confidences is None else confidences
    return RunPredictions(labels, predicted, confidences, None, None)


def test_the_bins_of_a_diagram_make_the_rows_ece(runs_dir: Path) -> None:
    (group,) = load_groups(runs_dir, [])
    for setting in group.settings:
        for run in setting.runs:
            assert run.predictions is not None
            bins = run.predictions.reliability
            assert bins is not None
            gaps = np.abs(bins.accuracies - bins.confidences) * bins.counts / 600
            assert bins.counts.sum() == 600
            assert gaps.sum() == pytest.approx(run.row.test_ece, abs=1e-12)


def test_a_temperature_moves_the_bins_as_it_moves_the_logits(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "mlp-aa", 1.0, test_temperature=2.0)
    logits = predictions.read(folder.predictions_file).logits
    expected = calibration.ece(logits.astype(np.float64) / 2, LABELS)[0]
    scaled = read_predictions(folder, folder.row()).scaled
    assert scaled is not None
    gaps = np.abs(scaled.accuracies - scaled.confidences) * scaled.counts / 600
    assert gaps.sum() == pytest.approx(expected, abs=1e-12)


def test_the_worst_mistakes_are_the_surest_wrong_answers() -> None:
    labels = np.array([0, 1, 2, 0, 1])
    predicted = np.array([1, 1, 0, 2, 0])
    confidences = np.array([0.5, 1.0, 0.9, np.nan, 0.9])
    worst = mistakes(predicting(predicted, labels, confidences), 2)
    assert worst.tolist() == [2, 4]
    assert len(mistakes(predicting(predicted, labels, confidences), 9)) == 3


def test_thumbnails_are_the_very_images_and_only_of_the_runs_data(
    report: Any, runs_dir: Path, tmp_path: Path
) -> None:
    write_layout(tmp_path / "mine", test=600, names=NAMES)
    data = open_dataset(tmp_path / "mine")
    code, error = report("--data-dir", "mine")
    assert (code, "does not hold the images" in error) == (3, True)
    assert "--data-dir DIR" in Seen(report()).words
    for folder in runs_dir.glob("*"):
        row = json.loads((folder / "result.json").read_text())
        row["config"]["data"] = data.fingerprint
        (folder / "result.json").write_text(json.dumps(row))
    text = report("--data-dir", "mine")
    pictures = re.findall(r'data:image/png;base64,([^"]+)" [^>]*alt="test image (\d+): (\w+)', text)
    assert len(pictures) == 24
    for encoded, row, name in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
        assert np.array_equal(pixels, data.test.images[int(row)].transpose(1, 2, 0))
        assert name == NAMES[LABELS[int(row)]]
    (tmp_path / "mine" / "stl10_binary" / "test_X.bin").write_bytes(b"short")
    code, error = report("--data-dir", "mine")
    assert (code, "test_X.bin" in error) == (3, True)


def spoil(folder: Path, what: str) -> None:
    """Leave a run's files as a killed, damaged or running run does."""
    logits = folder / "predictions.safetensors"
    if what == "missing":
        logits.unlink()
        (folder / "metrics.jsonl").unlink()
        (folder / "best.safetensors").unlink()
    elif what == "half":
        logits.write_bytes(logits.read_bytes()[:100])
        (folder / "best.safetensors").write_bytes(b"\x80\x02pickle")
    elif what == "other":
        logits.write_bytes((folder.parent / "cnn-cc" / logits.name).read_bytes())
    elif what == "torn":
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "ep')
    elif what == "damaged":
        (folder / "metrics.jsonl").write_text('no\n{"epoch": 1}\n')
    elif what == "far":
        (folder / "metrics.jsonl").write_text(f'{{"epoch": {10**400}, "val/loss": 1}}\n')
    elif what == "infinite":
        rows = '{"epoch": 1, "val/loss": 1e999, "train/loss": -1e300, "val/accuracy": [1]}\n'
        (folder / "metrics.jsonl").write_text(rows)


@pytest.mark.parametrize(
    ("what", "note"),
    [
        ("missing", "predictions.safetensors is missing"),
        ("half", "predictions.safetensors is not a safetensors file"),
        ("other", "does not belong to this run"),
        ("torn", "the last line of metrics.jsonl is incomplete and left out"),
        ("damaged", "line 1 is damaged"),
        ("far", "has an epoch beyond"),
        ("infinite", ""),
    ],
)
def test_a_run_whose_files_cannot_be_believed_keeps_its_row(
    report: Any, runs_dir: Path, what: str, note: str
) -> None:
    spoil(runs_dir / "mlp-aa", what)
    seen = Seen(report())
    assert note in seen.words
    assert str(runs_dir) not in seen.words
    assert [line[0] for line in seen.tables["Runs of mlp"]] == ["run", "mlp-aa", "mlp-bb"]
    assert "nan" not in re.sub(r"<style>.*</style>", "", report())
    assert report("--format", "markdown")


def test_runs_that_are_not_finished_are_named(report: Any, runs_dir: Path) -> None:
    for name, state in (("cnn-run", "running"), ("cnn-bad", "diverged")):
        folder = runs_dir / name
        folder.mkdir()
        config = {"model": "cnn", "data": "0" * 64, "lr": 0.5}
        (folder / "config.json").write_text(json.dumps(config))
        status = {"state": state, "reason": "diverged: at step 3", "pid": 1}
        (folder / "status.json").write_text(json.dumps(status))
    seen = Seen(report())
    assert "cnn-run is left out: it is not finished (killed)" in seen.words
    assert seen.tables["Runs that failed"][1] == ["cnn, lr 0.5", "diverged: at step 3"]


def test_a_damaged_row_is_noted_and_hides_no_other(report: Any, runs_dir: Path) -> None:
    (runs_dir / "mlp-aa" / "result.json").write_text("{")
    seen = Seen(report())
    assert "mlp-aa is left out: result.json is not JSON" in seen.words
    assert [line[0] for line in seen.tables["Runs of mlp"]] == ["run", "mlp-bb"]
    code, error = report("mlp-aa")
    assert code == 4
    assert "mlp-aa/result.json" in error


def test_files_without_predictions_or_classes_give_numbers_for_names(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "mlp-aa", 1.0)
    spoil(folder.path, "missing")
    (group,) = load_groups(tmp_path, [])
    assert group.class_names == ("class 0", "class 1", "class 2")


def test_settings_of_one_label_are_told_apart(tmp_path: Path) -> None:
    for number, lr in enumerate((0.1, 0.2)):
        add_run(tmp_path, f"mlp-{number}", 1.0 + number, lr=lr)
    (group,) = load_groups(tmp_path, [])
    assert [setting.name for setting in group.settings] == ["mlp, lr 0.2", "mlp, lr 0.1"]


def test_runs_on_other_images_are_another_group(report: Any, runs_dir: Path) -> None:
    add_run(runs_dir, "mlp-other", 1.0, config={"data": "f" * 64})
    text = report()
    assert text.count("<article>") == 2
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    groups = re.findall(r'type="radio" name="([^"]+)"[^>]*checked', text)
    assert len(groups) == len(set(groups))


def test_edited_labels_are_refused(report: Any, runs_dir: Path) -> None:
    labels = (LABELS + 1) % 3
    add_run(runs_dir, "mlp-edited", 1.0, labels=labels)
    code, error = report()
    assert code == 4
    assert "labels in predictions.safetensors differ" in error


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--format", "htm"], 2, "unknown format 'htm': did you mean 'html'"),
        (["cnn-dd"], 2, "unknown run 'cnn-dd': did you mean 'cnn-cc'"),
        (["--runs-dir", "none"], 2, "no finished run in none"),
        (["--data-dir", "none"], 3, "does not hold the images"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(
    report: Any, arguments: list[str], code: int, text: str
) -> None:
    exit_code, error = report(*arguments)
    assert exit_code == code
    assert text in error
    assert len(error.strip().splitlines()) == 1


def test_two_runs_of_one_name_are_refused(runs_dir: Path, tmp_path: Path) -> None:
    add_run(tmp_path / "other", "mlp-aa", 1.0)
    with pytest.raises(UsageError, match="two runs are named 'mlp-aa'"):
        load_groups(runs_dir, ["mlp-aa", str(tmp_path / "other" / "mlp-aa")])


def test_fifteen_runs_with_pictures_stay_below_three_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_layout(tmp_path / "data", test=600, names=NAMES)
    noise = rng.integers(0, 256, (600, 3, 96, 96), dtype=np.uint8)
    noise.tofile(tmp_path / "data" / "stl10_binary" / "test_X.bin")
    data = open_dataset(tmp_path / "data").fingerprint
    for number in range(15):
        config = {"data": data, "lr": 0.001 * (1 + number)}
        write_log(add_run(tmp_path / "runs", f"mlp-{number}", 1.0, config=config), 100)
    text = html_page("x", build_report(tmp_path / "runs", [], data_dir=tmp_path / "data"))
    assert text.count("data:image/png") == 24
    assert len(text.encode()) < 3e6


def test_a_report_needs_no_torch(runs_dir: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from stl10bench.cli.main import main\n"
        f"sys.argv = ['x', 'report', '--runs-dir', {str(runs_dir)!r}, "
        f"'--output', {str(tmp_path / 'r.html')!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys"
    )
    assert heavy_after(code).endswith("['numpy']")


def test_many_classes_are_listed_by_the_pairs_confused_most(tmp_path: Path) -> None:
    labels = np.arange(600) % 30
    logits = np.eye(30, dtype=np.float32)[labels]
    logits[labels == 7] = np.eye(30)[3]
    folder = add_run(tmp_path, "mlp-aa", 1.0, **scores(logits, labels))
    predictions.save(folder.predictions_file, {"logits": logits, "labels": labels})
    section = confusion_section(load_groups(tmp_path, [])[0])
    assert section is not None
    (line,) = section.blocks[1].blocks[0].lines  # type: ignore[union-attr]
    assert line[:3] == ("class 7", "class 3", "20 of 20")


def test_the_details_of_a_row_have_its_settings_and_how_to_train_it_again(
    report: Any, runs_dir: Path
) -> None:
    config = {"lr": 0.02, "rotation": [-5.0, 5.0]}
    add_run(runs_dir, "mlp-cc", 1.2, model_options={"hidden": [64, 32]}, config=config)
    text = report()
    assert "Non-default settings: hidden 64-32, lr 0.02, rotation -5,5" in Seen(text).words
    for name in ("mlp-aa", "mlp-bb", "mlp-cc", "cnn-cc"):
        assert f"stl10bench reproduce {name}" in text


def record_study(runs_dir: Path, study: Study, ends: tuple[str, ...]) -> None:
    """The record of a study of one factor, the ends of the names of its runs."""
    entries = [record.Entry(labels=[end], seed=0, run=f"mlp-{end}", val_images=9) for end in ends]
    facts: dict[str, Any] = {"data": "0" * 64, "dataset": "demo", "base": None}
    record.write(runs_dir, record.Record(format=record.FORMAT, study=study, runs=entries, **facts))


def test_a_study_stands_in_the_group_that_has_most_of_its_runs(runs_dir: Path) -> None:
    for seed in range(2):
        add_run(runs_dir, f"mlp-{seed}", 1.0, config={"data": "1" * 64}, seed=seed)
    study = Study(name="two", model="mlp", vary={"end": ["aa", "0", "1"]}, seeds=(0,))
    record_study(runs_dir, study, ("aa", "0", "1"))
    groups = load_groups(runs_dir, [])
    ((loaded,), notes) = load_studies(runs_dir, groups)
    assert groups[loaded.group].settings[0].row.config.data == "1" * 64
    assert notes == []


def test_the_headline_compares_what_is_ranked_and_names_what_is_not(
    report: Any, runs_dir: Path
) -> None:
    for seed in (0, 1):
        add_run(runs_dir, f"logistic-{seed}", 0.5 + seed / 10, seed=seed)
    summary = Seen(report()).words
    # The cnn stands first in the table, but has one of two runs.
    first = (
        r"Highest: cnn, test accuracy 0\.\d+ \[.*\], not ranked, because it has only 1/2 runs\. "
    )
    assert re.search(rf"{first}Best with all runs: mlp, test accuracy 0\.\d+ \[", summary)
    add_run(runs_dir, "cnn-dd", 2.4, seed=1)
    summary = Seen(report()).words
    assert "Best: cnn, " in summary
    assert "not ranked" not in summary


def test_a_study_that_ran_has_its_ranking_by_validation_accuracy(
    report: Any, runs_dir: Path
) -> None:
    study = Study(
        name="rates", model="mlp", vary={"seed_name": ["aa", "bb"]}, seeds=(0,), finding="bb best",
        best={"seed_name": "bb"},
    )  # fmt: skip
    for end, accuracy in (("aa", 0.9), ("bb", 0.1)):  # not in the order of the test split
        path = runs_dir / f"mlp-{end}" / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"val_accuracy": accuracy}))
    record_study(runs_dir, study, ("aa", "bb"))
    page = Seen(report())
    assert "rates: found here: best: seed_name=aa with 0.900" in page.words
    assert "the report found: bb best (Contradicted" in page.words
    (ranking,) = [lines for title, lines in page.tables.items() if title.startswith("rates")]
    assert [line[0] for line in ranking] == ["seed_name", "aa", "bb"]
    (runs_dir / "studies" / "rates" / "study.json").write_text("{}")
    page = Seen(report())
    assert not [title for title in page.tables if title.startswith("rates")]
    assert "studies/rates/study.json is not a study record" in page.words


def test_the_readers_of_predictions_agree(runs_dir: Path) -> None:
    folder = RunFolder(runs_dir / "mlp-aa")
    row = folder.row()
    read = read_predictions(folder, row)
    assert (read.predicted == read.labels).mean() == row.test_accuracy
    with pytest.raises(CheckpointError, match="does not belong to this run"):
        read_predictions(folder, row.model_copy(update={"test_accuracy": 0.5}))
