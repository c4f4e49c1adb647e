"""The report: the numbers of the runs in each of its forms, whatever stands in their files."""

import base64
import hashlib
import html
import io
import json
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from helpers.finished import LABELS
from helpers.layout import heavy_after, write_layout
from helpers.reports import NAMES, add_run, write_log
from helpers.rows import HOSTILE, cells_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import cohen_kappa_score
from typer.main import get_group

from stl10bench.cli import train
from stl10bench.cli.main import main
from stl10bench.cli.options import settings
from stl10bench.config import DEFAULT_RECIPE, RunConfig, make_config, recipe_settings
from stl10bench.core.console import clean
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.data.stl10 import open_dataset
from stl10bench.metrics import calibration
from stl10bench.metrics.classification import measures, score
from stl10bench.report import charts, studies
from stl10bench.report.charts import Point
from stl10bench.report.load import (
    Answers,
    agreement,
    distinct_names,
    gather,
    mistakes,
    read_answers,
)
from stl10bench.report.provenance import reproducing
from stl10bench.results.predictions import Predictions
from stl10bench.studies import record
from stl10bench.studies.study import Study
from stl10bench.training.resolve import check_settings
from stl10bench.training.row import save_predictions


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
        said = capsys.readouterr()
        if ended.value.code:
            return ended.value.code, said.err
        return Path(said.out.rstrip("\n")).read_text(encoding="utf-8")

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
    found = {setting.name: setting.row for setting in gather(runs_dir, [])[0].settings}
    assert [line[0] for line in shown[1:]] == [
        *("cnn", "mlp", "chance (baseline)", "constant class (baseline)")
    ]
    for name, cell in shown[1:3]:
        low, high = found[name]["test_accuracy_interval"]
        assert cell == f"{found[name]['test_accuracy']:.3f} [{low:.3f}, {high:.3f}]"
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
        whole[0] = [cell.removesuffix("") for cell in whole[0]]
        assert [[plain(c) for c in line] for line in whole] in [
            [[plain(c) for c in line] for line in one] for one in written
        ], title


def plain(cell: str) -> str:
    return re.sub(r"\\(?=[<>*_`&|\[\]\\])", "", cell).strip()


def test_the_same_runs_give_the_same_bytes(report: Any) -> None:
    assert report("--output", "a.html") == report("--output", "b.html")


@pytest.mark.parametrize("style", ["html", "markdown"])
@pytest.mark.parametrize("name", HOSTILE)
def test_other_peoples_names_stay_text(report: Any, runs_dir: Path, name: str, style: str) -> None:
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
    (folder / "status.json").write_text(json.dumps({"state": "finished", "reason": name}))
    broken = runs_dir / "mlp-ee"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model": name}))
    (broken / "status.json").write_text(json.dumps({"state": "failed", "reason": name}))
    text = report("--format", style, "--title", name)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    if style == "html":
        seen = Seen(text)
        assert set(seen.tags) <= tags
        assert seen.tags.count("script") == seen.tags.count("style") == 1
        assert not [key for key, _ in seen.attributes if key.startswith("on") or key == "style"]
        assert clean(name) in seen.words
    else:
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
    one, other = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    other[:90] = one[:90]
    share, kappa = agreement(answered(one), answered(other))
    assert share == (one == other).mean()
    assert kappa == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
    assert agreement(answered(one), answered(one)) == (1, 1)
    same = answered(np.zeros(5, np.int64))
    assert agreement(same, same) == (1, None)


def answered(predicted: Any, labels: Any = None, confidences: Any = None) -> Answers:
    labels = predicted if labels is None else labels
    confidences = np.ones(len(predicted)) if confidences is None else confidences
    return Answers(labels, predicted, confidences, None, None)


def test_the_bins_of_a_diagram_make_the_rows_ece(runs_dir: Path) -> None:
    (part,) = gather(runs_dir, [])
    for setting in part.settings:
        for run in setting.runs:
            for bins, key in ((run.answers.before, "test_ece"), (run.answers.after, None)):
                if bins is None:
                    continue
                gaps = np.abs(bins.accuracies - bins.confidences) * bins.counts / 600
                assert bins.counts.sum() == 600
                if key:
                    assert gaps.sum() == pytest.approx(run.row[key], abs=1e-12)


def test_a_temperature_moves_the_bins_as_it_moves_the_logits(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "mlp-aa", 1.0, test_temperature=2.0)
    row = json.loads((folder / "result.json").read_text())
    logits = safetensors.numpy.load_file(folder / "predictions.safetensors")["logits"]
    expected = calibration.ece(logits.astype(np.float64) / 2, LABELS.numpy())[0]
    after = read_answers(folder, row).after
    assert after is not None
    gaps = np.abs(after.accuracies - after.confidences) * after.counts / 600
    assert gaps.sum() == pytest.approx(expected, abs=1e-12)


def test_the_worst_mistakes_are_the_surest_wrong_answers() -> None:
    labels = np.array([0, 1, 2, 0, 1])
    predicted = np.array([1, 1, 0, 2, 0])
    confidences = np.array([0.5, 1.0, 0.9, np.nan, 0.9])
    found = mistakes(answered(predicted, labels, confidences), 2)
    assert found.tolist() == [2, 4]
    assert len(mistakes(answered(predicted, labels, confidences), 9)) == 3


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
    found = re.findall(r'data:image/png;base64,([^"]+)" [^>]*alt="test image (\d+): (\w+)', text)
    assert len(found) == 24
    for encoded, row, name in found:
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
        ("other", "is not of this run"),
        ("torn", "the torn last line of metrics.jsonl is left out"),
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
        config = {"model": "cnn", "data": "0" * 64}
        (folder / "config.json").write_text(json.dumps(config))
        status = {"state": state, "reason": "diverged: at step 3", "pid": 1}
        (folder / "status.json").write_text(json.dumps(status))
    seen = Seen(report())
    assert "cnn-run is not in the report: it is not finished (killed)" in seen.words
    assert seen.tables["Runs that failed"][1] == ["cnn", "diverged: at step 3"]


def test_files_without_predictions_or_classes_give_numbers_for_names(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "mlp-aa", 1.0)
    spoil(folder, "missing")
    (part,) = gather(tmp_path, [])
    assert part.class_names == ("class 0", "class 1", "class 2")


def test_settings_of_one_label_are_told_apart(tmp_path: Path) -> None:
    for number, lr in enumerate((0.1, 0.2)):
        add_run(tmp_path, f"mlp-{number}", 1.0 + number, lr=lr)
    (part,) = gather(tmp_path, [])
    assert [setting.name for setting in part.settings] == ["mlp, lr 0.2", "mlp, lr 0.1"]


def test_runs_on_other_images_are_another_chapter(report: Any, runs_dir: Path) -> None:
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
    found, error = report(*arguments)
    assert found == code
    assert text in error
    assert len(error.strip().splitlines()) == 1


def test_two_runs_of_one_name_are_refused(runs_dir: Path, tmp_path: Path) -> None:
    add_run(tmp_path / "other", "mlp-aa", 1.0)
    with pytest.raises(UsageError, match="two runs are named 'mlp-aa'"):
        gather(runs_dir, ["mlp-aa", str(tmp_path / "other" / "mlp-aa")])


def test_fifteen_runs_with_pictures_stay_below_three_megabytes(tmp_path: Path) -> None:
    from stl10bench.report.build import chapters
    from stl10bench.report.html import html_page

    rng = np.random.default_rng(0)
    write_layout(tmp_path / "data", test=600, names=NAMES)
    noise = rng.integers(0, 256, (600, 3, 96, 96), dtype=np.uint8)
    noise.tofile(tmp_path / "data" / "stl10_binary" / "test_X.bin")
    data = open_dataset(tmp_path / "data").fingerprint
    for number in range(15):
        config = {"data": data, "lr": 0.001 * (1 + number)}
        write_log(add_run(tmp_path / "runs", f"mlp-{number}", 1.0, config=config), 100)
    text = html_page("x", chapters(tmp_path / "runs", [], data_dir=tmp_path / "data"))
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
    from stl10bench.report.predictions import confused

    labels = torch.arange(600) % 30
    logits = torch.eye(30)[labels]
    logits[labels == 7] = torch.eye(30)[3]
    folder = add_run(tmp_path, "mlp-aa", 1.0, **measures(logits, labels))
    row = json.loads((folder / "result.json").read_text())
    scores = score(logits, labels, "test")
    row |= {"test_accuracy": scores["test/accuracy"], "test_loss": scores["test/loss"]}
    (folder / "result.json").write_text(json.dumps(row))
    save_predictions(folder / "predictions.safetensors", logits, labels)
    section = confused(gather(tmp_path, [])[0])
    assert section is not None
    (line,) = section.blocks[1].blocks[0].lines  # type: ignore[union-attr]
    assert [cell.text for cell in line[:3]] == ["class 7", "class 3", "20 of 20"]


def row_with(settings_of_run: dict[str, Any], **other: Any) -> Any:
    config = make_config({"model": "mlp", **settings_of_run})
    return {
        "run": config.name,
        "model": config.model,
        "model_options": {},
        "dataset": "STL-10",
        "config": config.model_dump(mode="json"),
        **other,
    }


def parsed(command: str) -> tuple[RunConfig, dict[str, Any]]:
    """What `train` makes of a command line: its config, so far as the options decide it."""
    words = shlex.split(command)
    start = words.index("train")
    group = get_group(train.app)
    context = group.commands["train"].make_context("train", words[start + 1 :])
    options = settings({k: v for k, v in context.params.items() if v is not None})
    given = {key: options.pop(key, None) for key in ("recipe", "dataset", "data_dir", "device")}
    where = {**given, "deterministic": options["deterministic"], "threads": options.get("threads")}
    for key in ("runs_dir", "tracker", "download", "compile", "deterministic", "overwrite"):
        options.pop(key, None)
    for key in ("verify", "as_json", "threads"):
        options.pop(key, None)
    model = options.pop("model")
    start_of = {key: options.pop(key, None) for key in ("weights", "pretrained")}
    config, _ = check_settings(
        model,
        recipe=given["recipe"] or DEFAULT_RECIPE,
        pretrained=bool(start_of["pretrained"]),
        settings=options,
    )
    return config, where


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "lr": st.floats(1e-6, 10),
            "epochs": st.integers(1, 500),
            "seed": st.integers(0, 2**32 - 1),
            "rotation": st.tuples(st.floats(-180, 0), st.floats(0, 180)),
            "schedule": st.sampled_from(["constant", "step", "cosine", "one-cycle"]),
            "optimizer": st.sampled_from(["sgd", "adam", "adamw", "lamb"]),
            "weight_decay": st.floats(0, 1),
            "warmup": st.floats(0, 0.9),
            "image_size": st.integers(8, 96),
            "input": st.sampled_from(["resize", "crop"]),
            "labels_per_class": st.one_of(st.none(), st.integers(1, 500)),
            "precision": st.sampled_from(["no", "bf16"]),
            "val_fraction": st.floats(0, 0.9),
        },
    ),
    st.sampled_from(["report", "tuned", "quick"]),
)
def test_the_command_of_a_row_has_the_rows_settings(
    given_settings: dict[str, Any], recipe: str
) -> None:
    base = dict(recipe_settings(recipe, "mlp", frozen=None))
    own = {"hidden": [64, 32], "dropout": 0.25}
    base.pop("model_options", None)
    row = row_with({**base, **given_settings}, model_options=own, device="cpu", threads=2)
    config, where = parsed(reproducing([row]))
    wanted = make_config(row["config"]).model_dump() | {"model_options": None}
    assert config.model_dump() | {"model_options": None} == wanted
    assert config.model_options == {"hidden": "64,32", "dropout": 0.25}
    assert (where["device"], where["threads"]) == ("cpu", 2)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (row_with({"fold": 3, "val_fraction": 0.0}), ["--fold", "3"]),
        (row_with({}, dataset="demo"), ["--dataset", "demo"]),
        (row_with({"data": "ab"}, dataset="STL-10 layout"), ["--data-dir", "DIR"]),
        (
            row_with({"model": "mobilenetv2"}, model_options={"freeze": False}),
            ["--no-freeze", "--no-pretrained"],
        ),
        (
            row_with(
                {"model": "mobilenetv2", "weights": "sha256:ab"}, model_options={"freeze": True}
            ),
            ["--freeze", "--weights", "FILE"],
        ),
        (row_with({}, deterministic=True, device="NVIDIA X"), ["cuda", "--deterministic"]),
        (row_with({}, processes=2), ["torchrun", "--nproc_per_node", "2", "-m", "stl10bench"]),
    ],
)
def test_the_command_says_what_a_config_does_not(row: Any, words: list[str]) -> None:
    *_, command = reproducing([row]).splitlines()
    assert [word for word in shlex.split(command) if word in words] == words


def test_the_runs_of_a_row_share_their_comments() -> None:
    rows = [row_with({"seed": seed}, commit="abc", dirty=True) for seed in (0, 1)]
    first, *commands = reproducing(rows).splitlines()
    assert first == "# at commit abc, with changed files"
    assert [re.search(r"--seed (\d)", one)[1] for one in commands] == ["0", "1"]


def test_a_config_of_another_version_has_no_command() -> None:
    row = row_with({})
    row["config"]["no_such"] = "\x1b[2J"
    text = reproducing([row])
    assert text.startswith("# no command")
    assert "\x1b" not in text


points = st.builds(
    lambda x, accuracy: Point("n", x, accuracy, accuracy, accuracy, True),
    st.floats(0, 1e12),
    st.floats(0, 1),
)


@given(st.lists(points, min_size=1, max_size=12))
def test_the_frontier_is_what_no_other_surpasses(given_points: list[Point]) -> None:
    front = charts.frontier(given_points)
    for one in given_points:
        surpassed = any(
            other.x <= one.x
            and other.accuracy >= one.accuracy
            and (other.x, other.accuracy) != (one.x, one.accuracy)
            for other in given_points
        )
        assert ((one.x, one.accuracy) in [(p.x, p.accuracy) for p in front]) != surpassed


@given(
    st.lists(st.floats(1e-9, 1e15), min_size=1, max_size=5),
    st.booleans(),
    st.integers(2, 9),
)
def test_ticks_are_few_and_within_the_axis(values: list[float], log: bool, most: int) -> None:
    axis = charts.axis(values, 0, 100, log=log)
    ticks = axis.ticks(most)
    assert len(ticks) <= 2 * most + 1
    assert all(axis.low * (1 - 1e-9) <= tick <= axis.high * (1 + 1e-9) for tick in ticks)
    assert all(-1e-6 <= axis(value) <= 100 + 1e-6 for value in values)


def test_three_values_of_one_setting_are_a_study(tmp_path: Path) -> None:
    for number, lr in enumerate((0.1, 0.001, 0.01)):
        precision = "bf16" if number else "no"
        config = {"lr": lr, "precision": precision}
        for seed in (0, 1):
            name = f"mlp-{number}{seed}"
            add_run(tmp_path, name, 1.0 + number, config={**config, "seed": seed})
    add_run(tmp_path, "cnn-0", 1.0, config={"lr": 0.1})
    (part,) = gather(tmp_path, [])
    rows = [setting.row for setting in part.settings]
    (family,) = studies.families(rows)
    assert (family.setting, family.values, family.model) == ("lr", (0.001, 0.01, 0.1), "mlp")
    assert [row["runs"] for row in family.rows] == [2, 2, 2]
    assert studies.is_numeric(family)
    assert studies.families(rows[1:]) == []


@pytest.mark.parametrize("values", [["a", "b", "c"], [1, 10**400, float("inf")], [[1], [2], [3]]])
def test_a_study_of_anything_has_a_figure(report: Any, runs_dir: Path, values: Any) -> None:
    for number, value in enumerate(values):
        add_run(runs_dir, f"mlp-{number}", 1.0 + number, config={"thing": value})
    assert "thing of mlp" in Seen(report()).tables


def test_families_of_one_setting_say_what_else_they_differ_in(tmp_path: Path) -> None:
    for number, (lr, size) in enumerate((lr, size) for lr in (0.1, 0.2, 0.3) for size in (8, 16)):
        add_run(tmp_path, f"mlp-{number}", 1 + number, config={"lr": lr, "batch_size": size})
    (part,) = gather(tmp_path, [])
    found = studies.families([setting.row for setting in part.settings])
    assert {(one.setting, one.model) for one in found} == {
        ("lr", "mlp, batch_size 8"),
        ("lr", "mlp, batch_size 16"),
    }


def test_names_are_as_short_as_tells_them_apart_and_never_the_same() -> None:
    def row(**config: Any) -> dict[str, Any]:
        return {"model": "mlp", "model_options": {}, "config": {"model": "mlp", **config}}

    grid = [row(a=1, b=2, c=3), row(a=1, b=5, c=3), row(a=1, b=5, c=4)]
    assert distinct_names(grid)[:2] == ["mlp, b 2", "mlp, b 5, c 3"]
    assert distinct_names([row(a=1)] * 3) == ["mlp", "mlp #2", "mlp #3"]


def test_a_study_stands_in_the_chapter_that_has_most_of_its_runs(runs_dir: Path) -> None:
    for seed in range(2):
        add_run(runs_dir, f"mlp-{seed}", 1.0, config={"data": "1" * 64}, seed=seed)
    study = Study(name="two", model="mlp", vary={"end": ["aa", "0", "1"]}, seeds=(0,))
    runs = [
        record.Entry(labels=[end], seed=0, run=f"mlp-{end}", val_images=9)
        for end in ("aa", "0", "1")
    ]
    made = {"format": record.FORMAT, "data": "0" * 64, "dataset": "demo", "base": None}
    record.write(runs_dir, record.Record(study=study, runs=runs, **made))
    parts = gather(runs_dir, [])
    found = [(part.settings[0].row["config"]["data"][0], len(part.studies)) for part in parts]
    assert sorted(found) == [("0", 0), ("1", 1)]


def test_the_headline_compares_what_is_ranked_and_names_what_is_not(
    report: Any, runs_dir: Path
) -> None:
    for seed in (0, 1):
        add_run(runs_dir, f"logistic-{seed}", 0.5 + seed / 10, seed=seed)
    summary = Seen(report()).words
    assert "Most accurate: mlp, " in summary  # of two runs; the cnn has one of the two
    assert re.search(r"Not ranked, for want of runs: cnn, 0\.\d+ \[", summary)
    add_run(runs_dir, "cnn-dd", 2.4, seed=1)
    summary = Seen(report()).words
    assert "Most accurate: cnn, " in summary
    assert "Not ranked" not in summary


def test_a_study_that_ran_has_its_ranking_by_the_hold_out(report: Any, runs_dir: Path) -> None:
    study = Study(
        name="rates", model="mlp", vary={"seed_name": ["aa", "bb"]}, seeds=(0,), finding="bb best",
        best={"seed_name": "bb"},
    )  # fmt: skip
    runs = [
        record.Entry(labels=[end], seed=0, run=f"mlp-{end}", val_images=9) for end in ("aa", "bb")
    ]
    for end, accuracy in (("aa", 0.9), ("bb", 0.1)):  # not in the order of the test split
        path = runs_dir / f"mlp-{end}" / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"val_accuracy": accuracy}))
    made = {"format": record.FORMAT, "data": "0" * 64, "dataset": "demo", "base": None}
    record.write(runs_dir, record.Record(study=study, runs=runs, **made))
    tables = Seen(report()).tables
    assert tables["Findings"][1][:2] == ["rates", "best: seed_name=aa with 0.900"]
    assert "does not hold" in tables["Findings"][1][3]
    assert [line[0] for line in tables["Ranking of rates"]] == ["seed_name", "aa", "bb"]
    (runs_dir / "studies" / "rates" / "study.json").write_text("{}")
    page = Seen(report())
    assert "Findings" not in page.tables
    assert "study rates: studies/rates/study.json is no record of a study" in page.words


def test_the_readers_of_predictions_agree(runs_dir: Path) -> None:
    folder = runs_dir / "mlp-aa"
    row = json.loads((folder / "result.json").read_text())
    found = read_answers(folder, row)
    assert (found.predicted == found.labels).mean() == row["test_accuracy"]
    with pytest.raises(CheckpointError, match="is not of this run"):
        read_answers(folder, row | {"test_accuracy": 0.5})
    assert Predictions._fields[:2] == ("logits", "labels")
