"""`stl10bench plot`: the curves are the logs' numbers, in a picture and live in a terminal."""

import io
import json
import math
import os
import platform
import pty
import re
import select
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from entry import Entry
from rich.console import Console
from test_history import make_run, row
from test_pictures import written

import stl10bench
from stl10bench import history
from stl10bench.errors import UsageError
from stl10bench.plots import figures, watch
from stl10bench.plots.curves import curves

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Entry:
    monkeypatch.chdir(tmp_path)
    return Entry(monkeypatch, capsys)


# Pictures.


def test_each_panel_holds_the_numbers_of_its_metrics(tmp_path: Path) -> None:
    found = [history.read(make_run(tmp_path, name, count)) for name, count in (("a", 3), ("b", 5))]
    figure = curves(found)
    assert [axes.get_title() for axes in figure.axes] == [
        *("loss", "accuracy", "learning rate", "images/s in training")
    ]
    loss, accuracy, rate, speed = figure.axes
    paths = ["train/loss", "val/loss"]
    expected = [(one.epochs, one.series(path)) for one in found for path in paths]
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
    found = [history.read(make_run(tmp_path, name)) for name in names]
    figure = curves(found)
    runs, kinds = figure.legends
    assert [text.get_text() for text in runs.get_texts()] == list(names)
    drawn = [line.get_color() for line in figure.axes[2].lines]
    assert [handle.get_color() for handle in runs.get_lines()] == drawn
    assert [text.get_text() for text in kinds.get_texts()] == ["hold-out", "training, augmented"]
    figures.save(figure, tmp_path / "a.svg")


def test_runs_of_far_apart_rates_have_a_logarithmic_scale_with_plain_numbers(
    tmp_path: Path,
) -> None:
    folders = [make_run(tmp_path, name) for name in "ab"]
    lines = "".join(json.dumps(row(epoch, lr=1e-5)) + "\n" for epoch in (1, 2))
    (folders[1] / "metrics.jsonl").write_text(lines)
    figure = curves([history.read(folder) for folder in folders])
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log", "linear"]
    figures.save(figure, tmp_path / "a.png")
    labels = [text.get_text() for text in figure.axes[2].get_yticklabels()]
    assert {"0.001", "0.0001", "1e-05"} <= set(labels)
    assert "$" not in "".join(labels)


def test_a_diverged_run_has_a_gap_and_the_rest_is_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(4, **{"train/loss": None, "val/loss": None})) + "\n")
    figure = curves([history.read(folder)])
    assert math.isnan(figure.axes[0].lines[0].get_ydata()[3])
    assert figure.axes[0].get_ylim()[0] == 0
    figures.save(figure, tmp_path / "a.png")


def test_more_runs_than_colours_and_no_epoch_at_all_are_refused(tmp_path: Path) -> None:
    found = [history.read(make_run(tmp_path, f"r{number}", 1)) for number in range(11)]
    with pytest.raises(UsageError, match="11 runs: at most 10 can be told apart"):
        curves(found)
    with pytest.raises(UsageError, match="no epoch is finished yet in x: --watch waits"):
        curves([history.read(make_run(tmp_path, "x", 0))])


def test_plot_names_the_picture_after_the_run(cli: Entry, tmp_path: Path) -> None:
    for name in ("mlp-1", "cnn-1"):
        make_run(tmp_path / "runs", name)
    assert cli("plot", "mlp") == (0, "mlp-1.png\n", "")
    assert written(tmp_path / "mlp-1.png").shape == (660, 1000, 3)
    first = (tmp_path / "mlp-1.png").read_bytes()
    assert cli("plot", "mlp", "cnn", "--runs-dir", "runs") == (0, "curves.png\n", "")
    assert written(tmp_path / "curves.png").shape == (680, 1000, 3)
    assert cli("plot", "runs/mlp-1", "--output", "again.png").out == "again.png\n"
    assert (tmp_path / "again.png").read_bytes() == first
    torn = tmp_path / "runs" / "mlp-1" / "metrics.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"ep')
    with warnings.catch_warnings(action="always"):
        ended = cli("plot", "mlp", "--output", "again.png")
    assert (ended.code, ended.err.count("\n")) == (0, 1)
    assert "the torn last line is left out" in ended.err
    assert (tmp_path / "again.png").read_bytes() == first


def test_a_real_run_is_plotted(cli: Entry, data_dir: Path, tmp_path: Path) -> None:
    row = stl10bench.train(
        "logistic", data_dir=data_dir, image_size=8, epochs=2, batch_size=8, tracker="none"
    )
    found = history.read(tmp_path / "runs" / row["run"])
    assert (found.state, found.epochs) == ("finished", (1, 2))
    for path in ("train/loss", "val/loss", "train/accuracy", "val/accuracy", "lr"):
        assert all(map(math.isfinite, found.series(path))), path
    assert cli("plot", "logistic", "--output", "run.svg").out == "run.svg\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("plot", 2, "name a run, or how its name begins: in runs are cnn-1, mlp-1, mlp-2"),
        ("plot mlp", 2, "run 'mlp' could be any of mlp-1, mlp-2"),
        ("plot mpl-1", 2, "unknown run 'mpl-1': did you mean 'mlp-1'"),
        ("plot mlp-1 --output x.pdf", 2, "--output x.pdf: must end in .png, .svg or .jpg"),
        (
            "plot mlp-1 --runs-dir none",
            2,
            "no run 'mlp-1': there is none in none",
        ),
        ("plot mlp-1 --watch", 2, "--watch draws in a terminal, and stdout is none"),
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


# Live.


def screen(found: list[history.History], width: int, height: int, **options: Any) -> list[str]:
    """The lines that --watch draws, without their colours."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, **options
    )
    console.print(watch.screen(found, console, ["running"] * len(found)))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in ANSI.sub("", text).splitlines()]


@pytest.mark.parametrize("size", [(40, 15), (60, 24), (80, 24), (120, 30), (200, 60)])
@pytest.mark.parametrize("count", [1, 3])
def test_the_curves_fit_the_terminal(tmp_path: Path, size: tuple[int, int], count: int) -> None:
    found = [history.read(make_run(tmp_path, f"mlp-{n}", n + 3)) for n in range(count)]
    lines = screen(found, *size)
    assert max(map(len, lines)) <= size[0]
    assert len(lines) < size[1], "the last line is the cursor's"
    text = "\n".join(lines)
    assert "(loss)" in text
    assert ("(accuracy)" in text) == (size[1] > 15), "there is no room for it"
    assert f"epoch {count + 2}/5" in text
    if size[0] >= 60:
        assert "train 0.667 25.0%  hold-out 1.000 50.0%" in text


def test_without_colours_runs_are_told_by_letters(tmp_path: Path) -> None:
    found = [history.read(make_run(tmp_path, name)) for name in ("one", "two")]
    plain = "\n".join(screen(found, 80, 30, no_color=True))
    assert plain.count("B") >= 4, "three epochs and the line of the run"
    assert "A one" in plain
    assert "━ one" in "\n".join(screen(found, 80, 30, color_system="256", no_color=False))


def test_a_hostile_run_name_is_only_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "[red]x[$]\x1b[2J")
    text = "\n".join(screen([history.read(folder)], 100, 30))
    assert "[red]x[$] [2J" in text


@pytest.mark.parametrize("values", [{}, {"train/loss": None, "val/loss": None}])
def test_what_is_not_there_yet_is_not_drawn(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = make_run(tmp_path, "a", 0)
    if values:
        (folder / "metrics.jsonl").write_text(json.dumps(row(1, **values)) + "\n")
    text = "\n".join(screen([history.read(folder)], 80, 24))
    assert ("no epoch yet" in text) == (not values)


def test_a_run_whose_process_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", state="running")
    assert watch.is_running(folder), "nothing is known of its process"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid, running in ((os.getpid(), True), (gone.pid, False)):
        facts = {"state": "running", "reason": "", "pid": pid, "host": platform.node()}
        (folder / "status.json").write_text(json.dumps(facts))
        assert watch.is_running(folder) is running
    assert watch.news(folder).startswith("killed")
    (folder / "status.json").write_text(json.dumps({**facts, "host": "another"}))
    assert watch.is_running(folder)
    for state in ("finished", "interrupted", "diverged", "failed"):
        (folder / "status.json").write_text(json.dumps({"state": state, "reason": ""}))
        assert not watch.is_running(folder)
        assert watch.news(folder) == state


def test_a_run_that_ends_while_it_is_looked_at_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path, "mlp-1", 1, state="running")
    is_running = watch.is_running

    def ending(asked: Path) -> bool:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row(2)) + "\n")
        (folder / "status.json").write_text('{"state": "finished", "reason": ""}')
        return is_running(asked)

    monkeypatch.setattr(watch, "is_running", ending)
    console = Console(file=io.StringIO(), width=80, height=30, force_terminal=True)
    watch.watch([folder], console)
    assert "epoch 2/5  finished" in console.file.getvalue()


class Watching:
    """`stl10bench plot NAME --watch` in a terminal of its own."""

    def __init__(self, runs_dir: Path, name: str, *options: str) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "stl10bench", "plot", name, "--watch"]
        self.process = subprocess.Popen(
            [*command, "--runs-dir", str(runs_dir), *options],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=runs_dir,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm"},
        )
        os.close(slave)
        self.text = ""

    def until(self, wanted: str) -> str:
        """What was printed until `wanted` came; "" waits for the end of the process."""
        while not wanted or wanted not in self.text:
            if not select.select([self._master], [], [], 60)[0]:
                raise TimeoutError(f"{wanted!r} did not come: {self.text[-2000:]!r}")
            try:
                content = os.read(self._master, 65536)
            except OSError:  # the terminal's other side is closed
                content = b""
            if not content:
                break
            self.text += content.decode(errors="replace")
        return self.text


def test_watching_follows_a_run_and_ends_with_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mlp-1", 1, state="running")
    live = Watching(tmp_path, "mlp", "--output", "end.png")
    live.until("epoch 1/5")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(2)) + "\n" + '{"step": 3')  # the next one is being written
    live.until("epoch 2/5")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('0, "epoch": 3, "train/loss": 0.125, "train/accuracy": 0.5}\n')
    (folder / "status.json").write_text('{"state": "finished", "reason": ""}')
    end = live.until("")
    assert live.process.wait(60) == 0
    assert "epoch 3/5" in end
    assert "finished" in end.rpartition("epoch 3/5")[2]
    assert end.rstrip().endswith("end.png")
    assert "warning" not in end
    assert written(tmp_path / "end.png").shape == (660, 1000, 3)


def test_ctrl_c_ends_watching_and_leaves_the_terminal_in_order(tmp_path: Path) -> None:
    make_run(tmp_path, "mlp-1", 1, state="running")
    live = Watching(tmp_path, "mlp")
    live.until("epoch 1/5")
    time.sleep(0.2)
    live.process.send_signal(signal.SIGINT)
    end = live.until("")
    assert live.process.wait(60) == 130
    assert "Traceback" not in end
    assert end.rfind("\x1b[?25h") > end.rfind("\x1b[?25l"), "the cursor is shown again"
