"""`stl10bench plot`: the curves are the logs' numbers, in a figure."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.entry import Entry
from helpers.logs import make_run, row
from helpers.pictures import check_texts, written

import stl10bench
from stl10bench.core.errors import UsageError
from stl10bench.plots import style
from stl10bench.plots.curves import curves, settings_overlaid
from stl10bench.results import history
from stl10bench.results.run_folder import RunFolder

# Pictures.


def test_each_panel_holds_the_numbers_of_its_metrics(tmp_path: Path) -> None:
    histories = [history.read(make_run(tmp_path, *run)) for run in (("a", 3), ("b", 5))]
    figure = curves(histories)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        *("loss", "accuracy", "learning rate", "images per second")
    ]
    loss, accuracy, rate, speed = figure.axes
    paths = ["train/loss", "val/loss"]
    expected = [(run.epochs, run.series(path)) for run in histories for path in paths]
    for line, (epochs, values) in zip(loss.lines, expected, strict=True):
        assert np.array_equal(line.get_xdata(), epochs)
        assert np.array_equal(line.get_ydata(), values)
    assert [line.get_linestyle() for line in loss.lines] == ["--", "-"] * 2
    assert [set(line.get_ydata()) for line in accuracy.lines] == [{0.25}, {0.5}] * 2
    assert [set(line.get_ydata()) for line in rate.lines] == [{0.001}] * 2
    assert [set(line.get_ydata()) for line in speed.lines] == [{100.0}] * 2
    first, second = ({line.get_color() for line in loss.lines[i : i + 2]} for i in (0, 2))
    assert len(first) == len(second) == 1
    assert first != second


def test_the_legend_names_each_run_whatever_its_name(tmp_path: Path) -> None:
    names = ("_a", "$\\frac{$", "[red]b", "<script>")
    figure = curves([history.read(make_run(tmp_path, name)) for name in names])
    runs, kinds = figure.legends
    assert [text.get_text() for text in runs.get_texts()] == list(names)
    drawn = [line.get_color() for line in figure.axes[2].lines]
    assert [handle.get_color() for handle in runs.get_lines()] == drawn
    assert [text.get_text() for text in kinds.get_texts()] == [
        "validation",
        "training (augmented images)",
    ]
    style.save(figure, tmp_path / "a.svg")


def test_runs_of_far_apart_rates_have_a_logarithmic_scale_with_plain_numbers(
    tmp_path: Path,
) -> None:
    folders = [make_run(tmp_path, name) for name in "ab"]
    slow = {"lr": 1e-5, "images_per_second": 9.0}
    lines = "".join(json.dumps(row(epoch, **slow)) + "\n" for epoch in (1, 2))
    folders[1].log_file.write_text(lines)
    figure = curves([history.read(folder) for folder in folders])
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log", "log"]
    style.save(figure, tmp_path / "a.png")
    assert figure.axes[2].get_ylabel() == "learning rate (log scale)"
    labels = [text.get_text() for text in figure.axes[2].get_yticklabels()]
    assert {"0.001", "0.0001", "1e-05"} <= set(labels)
    assert "$" not in "".join(labels)
    for axes in figure.axes:
        label, panel = axes.yaxis.label.get_window_extent(), axes.get_window_extent()
        assert label.height <= panel.height, axes.get_ylabel()


def test_a_diverged_run_has_a_gap_and_the_rest_is_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a")
    with folder.log_file.open("a") as file:
        file.write(json.dumps(row(4, **{"train/loss": None, "val/loss": None})) + "\n")
    figure = curves([history.read(folder)])
    assert math.isnan(figure.axes[0].lines[0].get_ydata()[3])
    assert figure.axes[0].get_ylim()[0] == 0
    style.save(figure, tmp_path / "a.png")


def test_more_runs_than_colours_and_no_epoch_at_all_are_refused(tmp_path: Path) -> None:
    histories = [history.read(make_run(tmp_path, f"r{number}", 1)) for number in range(11)]
    with pytest.raises(UsageError, match="11 runs: a figure shows at most 10; name fewer"):
        curves(histories)
    with pytest.raises(UsageError, match="no finished epoch in x: plot again after the first one"):
        curves([history.read(make_run(tmp_path, "x", 0))])


def test_settings_overlaid_are_means_with_a_dot_at_each_runs_best_epoch(tmp_path: Path) -> None:
    runs = [history.read(make_run(tmp_path, *run)) for run in (("a", 3), ("b", 5), ("c", 3))]
    settings = {"two": [(runs[0], 2), (runs[1], 5)], "_one": [(runs[2], None)]}
    figure = settings_overlaid(settings, top=0.9)
    loss, accuracy = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["two", "_one"]
    train, val, *dots, _, _ = accuracy.lines
    assert (set(train.get_ydata()), set(val.get_ydata())) == ({0.25}, {0.5})
    assert len(val.get_xdata()) == 5
    assert [(*dot.get_xdata(), *dot.get_ydata()) for dot in dots] == [(2, 0.5), (5, 0.5)]
    drawn = [line.get_ydata() for line in loss.lines]
    drawn += [path.vertices[:, 1] for band in loss.collections for path in band.get_paths()]
    assert max(map(max, drawn)) == 0.9, "cut at the top"
    check_texts(figure)


def test_plot_names_the_picture_after_the_run(cli: Entry, tmp_path: Path) -> None:
    for name in ("mlp-1", "cnn-1"):
        make_run(tmp_path / "runs", name)
    assert cli("plot", "mlp") == (0, "mlp-1.png\n", "")
    assert written(tmp_path / "mlp-1.png").shape[1] == 9 * style.DPI
    first = (tmp_path / "mlp-1.png").read_bytes()
    assert cli("plot", "mlp", "cnn", "--runs-dir", "runs") == (0, "curves.png\n", "")
    assert written(tmp_path / "curves.png").shape[1] == 9 * style.DPI
    assert cli("plot", "mlp", "cnn", "--dpi", "50", "--output", "small.png").code == 0
    assert written(tmp_path / "small.png").shape[1] == 9 * 50
    assert cli("plot", "mlp", "--title", "My runs", "--output", "a.svg").code == 0
    assert "<!-- My runs -->" in (tmp_path / "a.svg").read_text()
    assert cli("plot", "runs/mlp-1", "--output", "again.png").out == "again.png\n"
    assert (tmp_path / "again.png").read_bytes() == first
    torn = tmp_path / "runs" / "mlp-1" / "metrics.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"ep')
    with warnings.catch_warnings(action="always"):
        ended = cli("plot", "mlp", "--output", "again.png")
    assert (ended.code, ended.err.count("\n")) == (0, 1)
    assert "the last line is incomplete and left out" in ended.err
    assert (tmp_path / "again.png").read_bytes() == first


def test_a_real_run_is_plotted(cli: Entry, data_dir: Path, tmp_path: Path) -> None:
    row = stl10bench.train(
        "logistic", data_dir=data_dir, image_size=8, epochs=2, batch_size=8, tracker="none"
    )
    run = history.read(RunFolder(tmp_path / "runs" / row["run"]))
    assert (run.state, run.epochs) == ("finished", (1, 2))
    for path in ("train/loss", "val/loss", "train/accuracy", "val/accuracy", "lr"):
        assert all(map(math.isfinite, run.series(path))), path
    assert cli("plot", "logistic", "--output", "run.svg").out == "run.svg\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("plot", 2, "Missing run: pass a name or its beginning; in runs are cnn-1, mlp-1, mlp-2"),
        ("plot ml", 2, "run 'ml' is ambiguous: mlp-1 (new), mlp-2 ("),
        ("plot mpl-1", 2, "unknown run 'mpl-1': did you mean 'mlp-1'"),
        ("plot mlp-1 --output x.pdf", 2, "--output x.pdf: must end in .png, .svg or .jpg"),
        (
            "plot mlp-1 --runs-dir none",
            2,
            "no run 'mlp-1': none holds no runs",
        ),
        ("plot cnn-1", 4, "metrics.jsonl: line 1 is damaged"),
    ],
)
def test_what_cannot_be_plotted_is_one_line(
    cli: Entry, tmp_path: Path, arguments: str, code: int, text: str
) -> None:
    for name in ("mlp-1", "mlp-2", "cnn-1"):
        make_run(tmp_path / "runs", name)
    (tmp_path / "runs" / "cnn-1" / "metrics.jsonl").write_text("x\ny\n")
    ended = cli(*arguments.split())
    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)
    assert text in ended.err
