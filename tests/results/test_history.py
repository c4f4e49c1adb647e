"""What runs have logged is found by name, read whatever its state, and told apart by settings."""

import json
import math
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.layout import heavy_after
from helpers.logs import make_run, row
from hypothesis import given
from hypothesis import strategies as st

from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.results import history
from stl10bench.results.run_folder import RunFolder


def test_a_log_becomes_a_series_for_each_metric(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", state="finished", lr=0.5, model_options={"hidden": [8, 4]})
    with folder.log_file.open("a") as file:
        file.write('{"step": 30, "test/loss": 1.0, "test/accuracy": 0.5}\n')
    logged = history.read(folder)
    assert (logged.name, logged.state, logged.epochs) == ("a", "finished", (1, 2, 3))
    assert logged.series("train/loss") == (2.0, 1.0, pytest.approx(2 / 3))
    assert logged.settings == {"model": "mlp", "epochs": 5, "lr": 0.5, "hidden": [8, 4]}
    assert all(map(math.isnan, logged.series("test/loss")))


def test_a_log_cut_at_any_byte_keeps_its_whole_lines(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a")
    whole = folder.log_file.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, whole.index(b"\n", start) + 1):
        folder.log_file.write_bytes(whole[:end])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logged = history.read(folder)
        complete = whole[end : end + 1] == b"\n"
        assert logged.epochs == ((1, 2) if complete else (1,))
        expected = 0 if complete or end == start else 1
        assert len(caught) == expected, whole[start:end]
        if expected:
            assert "metrics.jsonl: the last line is incomplete and left out" in str(
                caught[0].message
            )
        assert history.read(folder, live=True).epochs == logged.epochs  # a warning is an error here


@pytest.mark.parametrize("damage", ["nonsense", "[1, 2]", "null", '{"epoch": 1', "[" * 9999])
def test_a_damaged_line_before_the_last_is_an_error(tmp_path: Path, damage: str) -> None:
    folder = make_run(tmp_path, "a")
    lines = folder.log_file.read_text().splitlines()
    folder.log_file.write_text("\n".join([lines[0], damage, *lines[1:]]) + "\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 is damaged"):
        history.read(folder)


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity", "-1e999", '"high"', "true", "[1]"])
def test_what_is_no_finite_number_is_a_gap(tmp_path: Path, value: str) -> None:
    folder = make_run(tmp_path, "a", epochs=1)
    line = json.dumps(row(2)).replace('"train/loss": 1.0', f'"train/loss": {value}')
    with folder.log_file.open("a") as file:
        file.write(f"{line}\n")
    first, second = history.read(folder).series("train/loss")
    assert first == 2.0
    assert math.isnan(second)


def test_a_number_beyond_floats_is_a_gap(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", epochs=0)
    folder.log_file.write_text(f'{{"epoch": 1, "lr": 1{"0" * 400}}}\n')
    assert math.isnan(history.read(folder).series("lr")[0])


def test_an_epoch_that_was_run_again_counts_once_and_they_are_in_order(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", epochs=0)
    rows = (row(3), row(1), row(2), row(2, lr=7.0))
    folder.log_file.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    logged = history.read(folder)
    assert logged.epochs == (1, 2, 3)
    assert logged.series("lr") == (0.001, 7.0, 0.001)


def test_a_run_without_a_log_has_no_epochs_yet(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    folder.path.mkdir()
    assert history.read(folder).epochs == ()
    assert history.read(folder).series("lr") == ()


def test_a_log_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_LOG_LIMIT", 100)
    with pytest.raises(CheckpointError, match="larger than 100 bytes"):
        history.read(make_run(tmp_path, "a"))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_log_give_no_epochs_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("any"))
    folder.log_file.write_bytes(content)
    with suppress(CheckpointError):
        assert history.read(folder, live=True).epochs == ()


# Names.


@pytest.mark.parametrize("name", ["cnn-12345678", "cnn", "c"])
def test_a_run_is_found_by_its_name_and_by_how_it_begins(tmp_path: Path, name: str) -> None:
    for run in ("cnn-12345678", "mlp-1", "mlp-2"):
        make_run(tmp_path, run)
    path = str(tmp_path / "mlp-2")
    folders = [RunFolder(tmp_path / "cnn-12345678"), RunFolder(tmp_path / "mlp-2")]
    assert history.find_runs(tmp_path, [name, path, "mlp-2", name]) == folders


def test_the_name_of_a_model_means_all_of_its_runs_unless_a_run_is_called_so(
    tmp_path: Path,
) -> None:
    for run in ("mlp-1", "mlp-2", "mlp-wide-1", "mlp-3.old-1"):
        make_run(tmp_path, run)
    folders = [RunFolder(tmp_path / "mlp-1"), RunFolder(tmp_path / "mlp-2")]
    assert history.find_runs(tmp_path, ["mlp", "mlp-2"]) == folders
    make_run(tmp_path, "mlp")
    assert history.find_runs(tmp_path, ["mlp"]) == [RunFolder(tmp_path / "mlp")]


def test_an_ambiguous_and_an_unknown_name_say_what_there_is(tmp_path: Path) -> None:
    for seed, run in enumerate(("mlp-1", "mlp-2", "logistic-12345678")):
        make_run(tmp_path, run, seed=seed)
    told = r"run 'ml' is ambiguous: mlp-1 \(seed 0, new\), mlp-2 \(seed 1, new\); type more of the"
    with pytest.raises(UsageError, match=told):
        history.find_runs(tmp_path, ["ml"])
    with pytest.raises(UsageError, match="did you mean 'logistic-12345678'"):
        history.find_runs(tmp_path, ["lgistic-1234"])
    with pytest.raises(UsageError, match="unknown run 'mpl': did you mean 'mlp'"):
        history.find_runs(tmp_path, ["mpl"])


def test_no_name_at_all_lists_the_runs_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is none in"):
        history.find_runs(tmp_path, [])
    for number in range(25):
        make_run(tmp_path, f"mlp-{number:02}")
    with pytest.raises(UsageError, match=r"are mlp-00, mlp-01, .*, mlp-19, \.\.\.$"):
        history.find_runs(tmp_path, [])


# Labels.


def test_runs_are_labelled_by_what_they_do_not_share(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path, "a", lr=0.1, seed=1, data="x", model_options={"hidden": [8, 4]}),
        make_run(tmp_path, "b", lr=0.001, seed=1, data="y", model_options={"hidden": [8]}),
        make_run(tmp_path, "c", lr=0.001, seed=1, data="y"),
    ]
    logged = [history.read(folder) for folder in folders]
    names = ["lr 0.1, data x, hidden 8-4", "lr 0.001, data y, hidden 8", "lr 0.001, data y"]
    assert history.labels(logged) == ("mlp", names)
    assert history.labels(logged[:1]) == ("mlp", ["a"])


def test_reading_runs_imports_nothing_heavy() -> None:
    assert heavy_after("import stl10bench.results.history") == "['numpy']"
