"""The document to hand in: its parts in order, what lacks runs, its figures, its final table."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.reports import add_run, leave_study
from helpers.rows import HOSTILE
from markupsafe import escape

from stl10bench.cli.main import main
from stl10bench.core.console import clean
from stl10bench.data.stl10 import open_dataset
from stl10bench.plots import document as figures
from stl10bench.plots import style
from stl10bench.plots.studies import read_results, shown
from stl10bench.report.best_settings import best_of_each
from stl10bench.results import benchmark_table
from stl10bench.results.rows import Row
from stl10bench.studies import parse, record

PARTS = [
    *("Data", "Models", "Logistic regression", "Fully connected network"),
    *("Convolutional network", "MobileNetV2", "Results", "How to run each part"),
]


@pytest.fixture(scope="module")
def runs_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the nine studies on the small data, and runs of a sixth setting on other data."""
    folder = tmp_path_factory.mktemp("study") / "runs"
    data = open_dataset(data_dir, verify=False, stamp=False).fingerprint
    leave_study(folder, data, "logistic-lr", "lr=1e-2,1e-3,1e-4")
    leave_study(folder, data, "mlp-lr-batch-size", "lr=1e-3,1e-4", "batch_size=64,128")
    add_run(folder, "cnn-else", 9.0, config={"data": "9" * 64}, val_accuracy=0.99)
    return folder


def write(data_dir: Path, runs_dir: Path, folder: Path, *arguments: str) -> str:
    """Run the command; returns the text that it wrote into `folder`."""
    path = folder / f"report.{'md' if 'markdown' in arguments else 'html'}"
    command = ["stl10bench", "report", "--template", "study", "--runs-dir", str(runs_dir)]
    command += ["--data-dir", str(data_dir), "--output", str(path), *arguments]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return path.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def markdown(data_dir: Path, runs_dir: Path, folder: Path) -> str:
    return write(data_dir, runs_dir, folder, "--format", "markdown")


@pytest.fixture(scope="module")
def empty(data_dir: Path, folder: Path) -> str:
    """The page of a folder without runs, and without data."""
    text = "".join(HOSTILE).replace("\x1b", "")
    return write(folder, folder / "none", folder, "--title", text, "--author", text)


def test_the_document_has_the_reports_parts_in_order_and_hides_nothing(
    markdown: str, empty: str
) -> None:
    assert re.findall(r"<h2>\d ([^<]+)</h2>", empty) == PARTS
    assert re.findall(r"^## \d (.+)$", markdown, re.MULTILINE) == PARTS
    assert "<details" not in empty
    assert "<script" not in empty


def test_a_part_without_runs_or_data_names_the_command_that_makes_it(empty: str) -> None:
    folders = "--data-dir DATA --runs-dir RUNS</code>"  # of no machine
    for name in parse.REPORT:
        assert f"<code>stl10bench study run {name} {folders}" in empty
    assert f"<code>stl10bench benchmark --all --recipe report {folders}" in empty
    assert "<code>stl10bench data download --data-dir DATA</code>" in empty


def test_a_figure_has_a_line_for_each_setting_in_each_of_its_panels(runs_dir: Path) -> None:
    for name, draw, settings in (
        ("logistic-lr", figures.overlaid, 3),
        ("mlp-lr-batch-size", figures.overlaid_grid, 2 * 2),  # rates, training and validation
    ):
        stored = record.read(runs_dir, name)
        assert stored is not None
        results = read_results(stored, record.trained(stored, runs_dir), runs_dir)
        figure = draw(results)
        assert style.encode(figure, ".svg") == style.encode(draw(results), ".svg")
        assert [len(axes.lines) for axes in figure.axes] == [settings] * 4
        named = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
        assert {shown(entry.labels[0]) for entry in stored.runs} <= named
        assert "learning rate:" in named


def test_the_best_setting_of_a_model_is_the_best_on_the_validation_images(
    markdown: str, runs_dir: Path
) -> None:
    rows, _ = benchmark_table.stored_rows(runs_dir)
    finished = [row for row in rows if isinstance(row, Row) and row.model != "cnn"]
    best = best_of_each(finished)
    for (model, _), row in best.items():
        accuracies = [other.val_accuracy for other in finished if other.model == model]
        assert row.val_accuracy == max(accuracies)
    assert "| Convolutional network | not run yet |" in markdown, "its data are others"
    setting = "lr 1e-4, batch 128, adamw, 3 epochs, 1 seed"
    assert f"| Fully connected network | {setting} | 0.560 |" in markdown


def test_the_pictures_of_the_markdown_lie_beside_it(markdown: str, folder: Path) -> None:
    links = re.findall(r"!\[.*\]\((.+)\)", markdown)
    assert [Path(link).stem for link in links] == [
        *("samples", "colour-jitter", "horizontal-flip", "rotation", "logistic-lr"),
        *("mlp-lr-batch-size", "mlp-lr-batch-size-map"),
    ]
    assert all((folder / link).stat().st_size > 1000 for link in links)


def test_no_title_and_no_author_is_markup(empty: str) -> None:
    text = "".join(HOSTILE).replace("\x1b", "")
    assert empty.count(str(escape(clean(text)))) == 4  # twice each
    assert "<script>x" not in empty


@pytest.mark.parametrize("name", parse.REPORT)
def test_the_command_of_a_study_means_that_study(name: str) -> None:
    changed = parse.Changes(seeds=2, settings={"epochs": 3})
    study = parse.define(name, changed)
    words = parse.as_command(study).split()
    assert words[:4] == ["stl10bench", "study", "run", name]
    assert words[4:] == ["--set", "epochs=3", "--seeds", "2"]


def test_neither_template_replaces_what_the_other_wrote(cli: Any) -> None:
    add_run(Path("runs"), "mlp-aa", 1.0)
    for template, written in (("dashboard", "report"), ("study", "study")):
        for form, suffix in (("html", "html"), ("markdown", "md")):
            code, out, _ = cli("report", "--template", template, "--format", form)
            assert (code, out) == (0, f"{written}.{suffix}\n")


def test_a_report_is_not_written_under_a_name_of_another_format(cli: Any) -> None:
    add_run(Path("runs"), "mlp-aa", 1.0)
    for template in ("dashboard", "study"):
        for form, name, remedy in (
            ("html", "x.pdf", "ends in .html; a browser prints the page as a PDF"),
            ("markdown", "x.html", "ends in .md"),
        ):
            code, _, err = cli("report", "--template", template, "--format", form, "--output", name)
            assert (code, Path(name).exists()) == (2, False)
            assert remedy in err


def test_a_study_with_another_recipe_tells_the_reports_finding_and_compares_nothing(
    data_dir: Path, tmp_path: Path, cli: Any
) -> None:
    data = open_dataset(data_dir, verify=False, stamp=False).fingerprint
    stored = leave_study(Path("runs"), data, "logistic-lr", "lr=1e-3,1e-4", recipe="quick")
    finding = parse.preset("logistic-lr").finding
    assert finding
    of_0_1 = stored.study.model_copy(update={"finding": "", "best": {}})
    for study in (stored.study, of_0_1):  # records lacked the finding once
        record.write(Path("runs"), stored.model_copy(update={"study": study}))
        text = write(data_dir, Path("runs"), tmp_path, "--format", "markdown")
        assert f"The report found: {finding}. Not compared: the report's study had other" in text
        assert "So far 1 of the 9 ablations has run." in text
        assert "### Learning rate\n" in text, "nothing of SGD, which the recipe replaced"
        assert "Changed from the full study: learning rate, seeds, recipe (quick)." in text
        listed = json.loads(cli("study", "list", "--json")[1].splitlines()[-1])["studies"][0]
        assert listed["report_found"] == finding
        assert "Not compared: the report's study had other settings" in listed["found_here"]


def test_the_models_the_augmentations_and_the_commands_are_those_of_the_runs(
    data_dir: Path, tmp_path: Path
) -> None:
    data = open_dataset(data_dir, verify=False, stamp=False).fingerprint
    runs = tmp_path / "runs"
    channels = {"channels": [8, 8]}
    config = {"data": data, "hue": 0.02, "epochs": 8, "batch_size": 64, "image_size": 32}
    add_run(runs, "cnn-a", 1.0, config=config, model_options=channels, image_size=32)
    config = {"data": data, "epochs": 8, "batch_size": 64, "weights": "none"}
    add_run(runs, "mobilenetv2-a", 1.0, config=config, model_options={"freeze": False})
    text = write(data_dir, runs, tmp_path, "--format", "markdown")
    assert "hue ±2% of the colour circle" in text
    assert "### Layers of the convolutional network at 32x32" in text
    assert "3\\*3\\*3\\*8 weights + 8 biases" in text
    assert "describe cnn --image-size 32 --model-option channels=8,8\n" in text
    assert "visualize augmentations cnn --recipe quick" in text
    (line,) = (line for line in text.splitlines() if "(frozen): not run yet." in line)
    wanting = text.partition(line)[2].partition("```\n")[0]
    assert "benchmark --all --recipe quick" in wanting
    ablations = "".join(code_blocks(text, "Ablations"))
    assert "mobilenetv2-freeze" in ablations
    assert "--no-pretrained" not in wanting + ablations, "a frozen one needs weights"
    assert "--no-pretrained" in "".join(code_blocks(text, "The final table"))[:500], "it ran so"


def code_blocks(markdown: str, heading: str) -> list[str]:
    """The lines of the shell below a heading."""
    (block,) = re.findall(rf"### {heading}\n+```sh\n(.*?)```", markdown, re.DOTALL)
    lines: list[str] = re.sub(r" \\\n\s+", " ", block).splitlines()
    return lines


def test_the_commands_of_the_table_give_its_runs_again(data_dir: Path, cli: Any) -> None:
    setting = ["--recipe", "report", "--epochs", "1", "--batch-size", "16", "--image-size", "8"]
    models = (["logistic", "--rotation", "0,5", "--seed", "3"], ["mlp", "--hidden", "8,4"])
    data = ["--data-dir", str(data_dir), "--no-verify", "--tracker", "none"]
    for model in models:
        assert cli("train", *model, *setting, *data)[0] == 0
    command = ("report", "--template", "study", "--format", "markdown", "--data-dir", str(data_dir))
    assert cli(*command)[0] == 0
    lines = code_blocks(Path("study.md").read_text(), "The final table")
    for line in lines[: len(models)]:
        assert "DATA" in line
        _, *words = line.replace("DATA", str(data_dir)).split()
        assert cli(*words, "--runs-dir", "again", "--tracker", "none")[0] == 0
    assert names_of("again") == names_of("runs")


def names_of(folder: str) -> set[str]:
    return {path.name for path in Path(folder).glob("*-*")}


def test_the_commands_of_studies_are_of_these_studies(
    markdown: str, runs_dir: Path, data_dir: Path
) -> None:
    lines = code_blocks(markdown, "Ablations")
    assert len(lines) == len(parse.REPORT)
    for name in ("logistic-lr", "mlp-lr-batch-size"):
        stored = record.read(runs_dir, name)
        (line,) = (line for line in lines if f" {name} " in line)
        words = line.split()
        pairs = list(zip(words[4:-1:2], words[5:-1:2], strict=True))
        vary = [value for key, value in pairs if key == "--vary"]
        settings = dict(value.split("=") for key, value in pairs if key == "--set")
        seeds = [int(value) for key, value in pairs if key == "--seeds"]
        changes = parse.Changes(vary=vary, seeds=seeds[0], settings=settings)
        assert stored is not None
        assert parse.define(name, changes) == stored.study
        assert words[-3:] == ["--data-dir", "DATA", "--no-verify"]
    assert str(data_dir) not in markdown
    assert str(runs_dir) not in markdown
