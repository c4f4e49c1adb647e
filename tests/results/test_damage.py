"""One damaged file among many: the good runs are shown, the bad one is named, and the code is 4."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.reports import add_run

from stl10bench.studies import record
from stl10bench.studies.study import Study

RATES = {f"mlp-{number}": round(0.1 * number, 1) for number in (1, 2, 3, 4)}
BAD = "mlp-3"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four finished runs, and a study of them."""
    runs_dir = tmp_path_factory.mktemp("stored")
    entries = []
    for name, lr in RATES.items():
        folder = add_run(runs_dir, name, 1.0 + lr, lr=lr)
        folder.status_file.write_text(json.dumps({"state": "finished", "reason": ""}))
        entries.append(record.Entry(labels=[str(lr)], seed=0, run=name, val_images=100))
    study = Study(
        name="rates", model="mlp", vary={"lr": list(map(str, RATES.values()))}, seeds=(0,)
    )
    facts = {"data": "0" * 64, "dataset": "STL-10", "base": None}
    record.write(runs_dir, record.Record(format=1, study=study, runs=entries, **facts))
    return runs_dir


@pytest.fixture
def run(stored: Path, tmp_path: Path, cli: Any) -> Callable[..., tuple[int, str, str]]:
    shutil.copytree(stored, tmp_path / "runs")
    return lambda words: cli(*words.split())


SPOILS = {"result": "result.json", "config": "config.json", "status": "status.json"}
SPOILS |= {"log": "metrics.jsonl", "predictions": "predictions.safetensors"}
READERS = {
    "table --studies": {"result", "predictions"},
    "table --studies --format csv": {"result", "predictions"},
    "compare": {"result", "predictions"},
    "compare mlp-1 mlp-2 mlp-3 mlp-4": {"result", "predictions"},
    "runs list": {"result", "config", "status"},
    "report --studies --output page.md --format markdown": {*SPOILS},
    "plot mlp-1 mlp-2 mlp-3 mlp-4 --output curves.svg": {"log", "config", "status"},
    "study show rates": {"result"},
    "study list": {"result"},
}


@pytest.mark.parametrize("words", READERS)
@pytest.mark.parametrize("kind", SPOILS)
def test_the_good_runs_are_shown_and_the_damaged_one_is_named(
    run: Any, tmp_path: Path, kind: str, words: str
) -> None:
    (tmp_path / "runs" / BAD / SPOILS[kind]).write_bytes(b'{"epoch": 1}\n{{\n{"epoch": 2}\n')
    code, out, err = run(words)
    if kind not in READERS[words]:  # it does not need that file
        assert (code, err) == (0, "")
        return
    assert code == 4
    pages = "".join(path.read_text() for path in tmp_path.glob("*.[ms][dv]*"))
    assert pages or all(f"{lr}" in out for name, lr in RATES.items() if name != BAD)
    assert BAD in out + err or words == "study list"
    assert err.count(BAD) <= 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("study list", 4),
        ("study show rates", 4),
        ("report --studies", 4),
        ("table", 4),
        ("table --studies", 0),
    ],
)
def test_a_damaged_record_of_a_study_is_named_by_those_who_read_it(
    run: Any, tmp_path: Path, words: str, code: int
) -> None:
    (tmp_path / "runs" / "studies" / "rates" / "study.json").write_text("{")
    ended, out, err = run(words)
    assert ended == code
    assert ("study.json" in out + err) == (code == 4)


@pytest.mark.parametrize(
    "words", ["table --studies", "report --studies --output page.md --format markdown"]
)
def test_a_copied_run_is_no_second_seed_and_hides_no_other(
    run: Any, tmp_path: Path, words: str
) -> None:
    shutil.copytree(tmp_path / "runs" / BAD, tmp_path / "runs" / "a-copy")
    code, out, err = run(words)
    assert code == 4
    assert err.count("it holds the same run as") == 1
    page = out + "".join(path.read_text() for path in tmp_path.glob("page.md"))
    assert all(f"lr {lr}" in page for lr in RATES.values())
    assert "0.0000" not in page  # the standard deviation of a run and its copy


def test_a_width_of_no_columns_is_no_width(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run("table --studies")
    monkeypatch.setenv("COLUMNS", "0")
    assert run("table --studies") == plain


def test_runs_list_survives_links_that_lead_nowhere_or_to_themselves(
    run: Any, tmp_path: Path
) -> None:
    for name, target in {"loop": "loop", "gone": "nowhere", "up": ".."}.items():
        (tmp_path / "runs" / BAD / name).symlink_to(target)
    assert run("runs list")[0] == 0
    assert run(f"runs show {BAD}")[0] == 0


def test_runs_show_shows_what_can_be_read_of_a_damaged_run(run: Any, tmp_path: Path) -> None:
    (tmp_path / "runs" / BAD / "config.json").write_text("{")
    code, out, _ = run(f"runs show {BAD}")
    assert code == 4
    assert "damaged" in out
    assert "config.json is not JSON" in " ".join(out.split())
    assert "result.json" in out


def test_runs_show_shows_the_result_and_the_whole_reason(run: Any, tmp_path: Path) -> None:
    code, out, _ = run(f"runs show {BAD}")
    assert code == 0
    row = json.loads((tmp_path / "runs" / BAD / "result.json").read_text())
    assert f"{row['test_accuracy']:.3f} [" in out
    assert f"{row['test_loss']:.3f}" in out
    result = json.loads(run(f"runs show {BAD} --json")[1])["result"]
    assert result["test_accuracy"] == row["test_accuracy"]
    (tmp_path / "runs" / BAD / "result.json").unlink()
    reason = "out of memory, " * 40
    status = {"state": "failed", "reason": reason}
    (tmp_path / "runs" / BAD / "status.json").write_text(json.dumps(status))
    assert reason.strip() in " ".join(run(f"runs show {BAD}")[1].split())


def test_runs_list_shows_dates_accuracies_and_what_differs(run: Any) -> None:
    _, out, _ = run("runs list")
    assert [line.split("  ")[0].strip() for line in out.splitlines()[4:8]] == [
        f"mlp, lr {lr}" for lr in RATES.values()
    ]
