"""Rows of others are verified level by level, and each lie is refused at its level."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from helpers import archives
from helpers.layout import write_layout

import stl10bench
from stl10bench.core.errors import CheckpointError
from stl10bench.data.stl10 import open_dataset
from stl10bench.inference import shared_rows
from stl10bench.models import checkpoint
from stl10bench.results import predictions
from stl10bench.results.benchmark_table import stored_rows
from stl10bench.results.run_folder import RunFolder

TINY: dict[str, Any] = {
    "image_size": 8,
    "epochs": 3,
    "batch_size": 8,
    "lr": 0.02,
    "tracker": "none",
}
FIXTURE = Path(__file__).parents[1] / "fixtures" / "runs-0.1.0"


@pytest.fixture(scope="module")
def runs_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, of somebody else."""
    runs_dir = tmp_path_factory.mktemp("theirs") / "runs"
    stl10bench.train(
        "logistic", data_dir=data_dir, runs_dir=runs_dir, threads=1, tta="flip", **TINY
    )
    return runs_dir


@pytest.fixture
def run(runs_dir: Path) -> RunFolder:
    (path,) = runs_dir.glob("logistic-*")
    return RunFolder(path)


@pytest.fixture
def verify(
    cli: Any, run: RunFolder, data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Share the run, let `change` forge the contents of the archive, verify it elsewhere."""
    monkeypatch.setenv("STL10BENCH_DATA", str(data_dir))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")

    def call(
        *options: str, change: Callable[[dict[str, bytes]], None] = lambda _: None
    ) -> tuple[int, str, str]:
        runs = ["--runs-dir", str(run.path.parent)]
        assert cli("rows", "share", run.name, *runs, "-o", "r.tar", "--with-checkpoint")[0] == 0
        contents = archives.members(Path("r.tar"))
        change(contents)
        archives.write(Path("r.tar"), contents)
        result: tuple[int, str, str] = cli("rows", "verify", "r.tar", *options)
        return result

    return call


def change_row(folder: RunFolder, **values: Any) -> Callable[[dict[str, bytes]], None]:
    def change(contents: dict[str, bytes]) -> None:
        name = f"{folder.name}/result.json"
        contents[name] = json.dumps(json.loads(contents[name]) | values).encode()

    return change


def change_arrays(
    run: RunFolder, how: Callable[[dict[str, Any]], None]
) -> Callable[[dict[str, bytes]], None]:
    """Change the predictions; their own sum is made right."""

    def change(contents: dict[str, bytes]) -> None:
        name = f"{run.name}/predictions.safetensors"
        arrays = safetensors.numpy.load(contents[name])
        how(arrays)
        contents[name] = predictions.encode(arrays)

    return change


def change_weights(
    run: RunFolder, tmp_path: Path, by: float = 1.0, **header: Any
) -> Callable[[dict[str, bytes]], None]:
    """Change a weight, or the header alone; the checkpoint's own sum is made right."""

    def change(contents: dict[str, bytes]) -> None:
        predictor = stl10bench.load(run.path)
        if not header:
            with torch.no_grad():
                next(predictor.model.parameters())[0, 0] += by
        checkpoint.save(
            tmp_path / "x.safetensors",
            predictor.model,
            predictor.header.model_copy(update=header),
        )
        contents[f"{run.name}/best.safetensors"] = (tmp_path / "x.safetensors").read_bytes()

    return change


def only_line(err: str) -> str:
    (line,) = err.splitlines()
    return line


def test_a_run_is_verified_to_the_same_bits_in_another_folder(verify: Any, run: RunFolder) -> None:
    code, out, _ = verify("--level", "reproduced")
    assert code == 0
    assert f"{run.name}: reproduced" in out
    for part in (
        "whole         schema",
        "figures from the logits of 20 images and your labels",
        "largest logit difference 0.0e+00 (allowed",
        "weights and predictions are bitwise identical",
        "reproduced: its settings, trained again on your data, give the same result.",
        "It cannot see where the logits come from: training on test images",
    ):
        assert part in out


def test_json_says_the_level_and_what_it_cannot_see(verify: Any, run: RunFolder) -> None:
    code, out, _ = verify("--json")
    facts = json.loads(out)
    assert (code, facts["exit_code"]) == (0, 0)
    (verified,) = facts["runs"]
    assert (verified["run"], verified["level"], verified["refused"]) == (
        run.name,
        "re-evaluated",
        None,
    )
    assert "training on test images" in facts["levels"]["recomputed"]["cannot_see"]


def test_a_refusal_in_json_is_one_object_too(verify: Any, run: RunFolder) -> None:
    code, out, err = verify("--json", change=change_row(run, test_ece=0.01))
    facts = json.loads(out)
    assert (code, facts["exit_code"], err) == (8, 8, "")
    assert facts["runs"][0]["level"] == "refused"
    assert "it says test_ece = 0.01" in facts["runs"][0]["refused"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("test_accuracy", 0.95),
        ("test_accuracy_interval", [0.9, 1.0]),
        ("test_loss", 0.5),
        ("test_macro_f1", 0.9),
        ("test_brier", 0.1),
        ("test_temperature", 1.5),
        ("per_class_accuracy", [0.4, 1.0, 1.0, 1.0]),
        ("val_accuracy", 0.01),
        ("val_loss", 0.01),
        ("test_images", 19),
        ("labels_used", 19),
        ("pretrained", True),
        ("epochs", 7),
        ("model_options", {"hidden": [3]}),
        ("dataset", "demo"),
    ],
)
def test_a_changed_figure_of_the_row_does_not_follow_from_its_logits(
    verify: Any, run: RunFolder, key: str, value: object
) -> None:
    code, out, err = verify(change=change_row(run, **{key: value}))
    assert code == 8
    assert f"{run.name}: refused" in out
    assert (
        f"{run.name} is refused at level recomputed: it says {key if key != 'dataset' else 'demo'}"
        in only_line(err)
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("parameters", 1), ("macs", 1), ("best_epoch", 9), ("contamination", "ImageNet"),
     ("mean", [0.1, 0.1, 0.1]), ("tta_accuracy", 0.01), ("tta_loss", 9.5)],
)  # fmt: skip
def test_a_changed_figure_of_the_model_is_not_its_checkpoints(
    verify: Any, run: RunFolder, key: str, value: object
) -> None:
    code, _, err = verify(change=change_row(run, **{key: value}))
    assert code == 8
    assert f"is refused at level re-evaluated: it says {key} = " in only_line(err)


def test_a_flipped_logit_does_not_give_the_figures(verify: Any, run: RunFolder) -> None:
    def flip(arrays: dict[str, Any]) -> None:
        arrays["logits"].view(np.uint32)[0, 0] ^= 1 << 22

    code, _, err = verify(change=change_arrays(run, flip))
    assert code == 8
    assert "is refused at level recomputed: it says test_loss = " in only_line(err)


@pytest.mark.parametrize("split", ["", "val_"])
def test_a_flipped_label_is_not_that_of_my_data(verify: Any, run: RunFolder, split: str) -> None:
    def flip(arrays: dict[str, Any]) -> None:
        arrays[f"{split}labels"][1] ^= 1

    code, _, err = verify(change=change_arrays(run, flip))
    assert code == 8
    assert "labels are not those of your data, the first at image 1" in only_line(err)


def test_logits_and_figures_that_fit_each_other_are_not_the_checkpoints(
    verify: Any, run: RunFolder, data_dir: Path
) -> None:
    """A row that somebody made up as a whole: only the checkpoint gives it away."""
    from helpers.finished import scores

    labels = open_dataset(data_dir).test.labels

    def change(contents: dict[str, bytes]) -> None:
        arrays: dict[str, Any] = {}

        def make_up(stored: dict[str, Any]) -> None:
            stored["logits"][:] = 5 * np.eye(4, dtype=np.float32)[labels]
            arrays.update(stored)

        change_arrays(run, make_up)(contents)
        validation = arrays["val_logits"].astype(np.float64), arrays["val_labels"]
        made = scores(arrays["logits"].astype(np.float64), labels, validation)
        change_row(run, **made)(contents)

    code, out, err = verify(change=change)
    assert code == 8
    assert "recomputed    " in out
    assert "at level re-evaluated: its checkpoint gives other logits here: largest" in only_line(
        err
    )
    code, out, _ = verify("--level", "recomputed", change=change)
    assert code == 0
    assert "logits that were made up" in out


def test_a_byte_of_the_checkpoint_breaks_its_sum(verify: Any, run: RunFolder) -> None:
    def flip(contents: dict[str, bytes]) -> None:
        content = bytearray(contents[f"{run.name}/best.safetensors"])
        content[-1] ^= 1
        contents[f"{run.name}/best.safetensors"] = bytes(content)

    code, _, err = verify(change=flip)
    assert code == 4
    line = only_line(err)
    assert "is refused at level re-evaluated" in line
    assert f"{run.name}/best.safetensors is damaged: its contents do not match" in line
    assert "stl10bench-rows-" not in line


def test_other_weights_give_other_logits(verify: Any, run: RunFolder, tmp_path: Path) -> None:
    code, _, err = verify(change=change_weights(run, tmp_path))
    assert code == 8
    assert "its checkpoint gives other logits here" in only_line(err)


def test_a_checkpoint_of_other_settings_is_refused(
    verify: Any, run: RunFolder, tmp_path: Path
) -> None:
    forged = run.config().model_copy(update={"lr": 0.5})
    code, _, err = verify(change=change_weights(run, tmp_path, config=forged))
    assert code == 8
    assert "its checkpoint was trained with other settings" in only_line(err)


def test_settings_that_were_forged_throughout_train_another_model(
    verify: Any, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row, settings and checkpoint agree on a rate that was never used."""
    monkeypatch.setattr(shared_rows, "SIGNIFICANCE", 0.1)  # 20 images decide little
    forged = run.config().model_copy(update={"lr": 1e-7})

    def change(contents: dict[str, bytes]) -> None:
        change_weights(run, tmp_path, config=forged)(contents)
        settings = forged.model_dump(mode="json")
        contents[f"{run.name}/config.json"] = json.dumps(settings).encode()
        change_row(
            run, config=settings, run=forged.name, checkpoint=f"{forged.name}/best.safetensors"
        )(contents)
        for name in list(contents):
            contents[name.replace(run.name, forged.name)] = contents.pop(name)

    assert verify("--level", "re-evaluated", change=change)[0] == 0
    code, out, err = verify("--level", "reproduced", change=change)
    assert code == 8, out
    assert "is refused at level reproduced: test accuracy " in err.splitlines()[-1]


def test_other_seeds_of_ones_own_say_what_noise_is(
    verify: Any, run: RunFolder, tmp_path: Path
) -> None:
    nudge = change_weights(run, tmp_path, by=1e-6)
    code, out, err = verify("--level", "reproduced", "--seeds", "2", change=nudge)
    assert code == 0, err
    assert "not the same bits, but the same within noise: test accuracy " in out
    assert "(test against 2 seeds trained here)" in out
    trained = len(list(Path("reproduced").glob("*/")))
    code, out, _ = verify("--level", "reproduced", "--overwrite")
    assert "not now" not in out
    assert len(list(Path("reproduced").glob("*/"))) == trained + 1


def test_a_damaged_file_of_ones_own_is_no_fault_of_the_row(
    verify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CheckpointError("reproduced/x is damaged")

    monkeypatch.setattr(shared_rows, "reproduce_run", fail)
    code, _, err = verify("--level", "reproduced")
    assert (code, only_line(err)) == (4, "error: r.tar: reproduced/x is damaged")
    assert not Path("runs/verified.json").exists()


def test_macs_that_this_machine_cannot_measure_refuse_no_row(
    verify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_rows.summary, "macs", None)
    code, out, _ = verify()
    assert (code, "get another class; macs: " in out) == (0, True)


def test_other_data_are_no_fault_of_the_row(verify: Any, tmp_path: Path) -> None:
    other = write_layout(tmp_path / "other", train=44)
    code, _, err = verify("--data-dir", str(other))
    assert code == 3
    assert "was tested on data" in only_line(err)


def test_without_a_checkpoint_it_says_what_to_ask_for(
    cli: Any, verify: Any, run: RunFolder, data_dir: Path
) -> None:
    runs = ["--runs-dir", str(run.path.parent)]
    assert cli("rows", "share", *runs, "-o", "s.tar")[0] == 0
    code, out, _ = cli("rows", "verify", "s.tar", "--data-dir", str(data_dir))
    assert (code, f"{run.name}: recomputed" in out) == (0, True)
    code, _, err = cli(
        *("rows", "verify", "s.tar", "--data-dir", str(data_dir), "--level", "re-evaluated")
    )
    assert code == 4
    assert "shared with --with-checkpoint, or use --level recomputed" in only_line(err)


def test_a_whole_archive_needs_no_data(verify: Any, run: RunFolder) -> None:
    code, out, _ = verify("--level", "whole", "--data-dir", "nowhere")
    assert (code, f"{run.name}: whole" in out) == (0, True)


def test_a_run_that_is_not_in_it_is_named_with_the_nearest(verify: Any) -> None:
    code, _, err = verify("logistik")
    assert (code, "unknown run 'logistik'" in only_line(err)) == (2, True)


def test_rows_of_old_versions_are_shared_and_recomputed(
    cli: Any, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = shutil.copytree(FIXTURE, tmp_path / "runs")
    rows, _ = stored_rows(runs)
    assert cli("rows", "share", "--runs-dir", str(runs), "-o", "r.tar", "--with-checkpoint")[0] == 0
    code, out, err = cli("rows", "verify", "r.tar", "--data-dir", str(data_dir))
    assert code == 0, err
    finished = len([row for row in rows if hasattr(row, "dataset")])
    assert out.count(": re-evaluated\n") == finished
    noted = runs / "verified.json"
    noted.unlink()
    details = iter(["same figures"])  # of the first run; the next one ends the command
    monkeypatch.setattr(shared_rows, "recompute", lambda *_: next(details))
    with pytest.raises(StopIteration):
        cli("rows", "verify", "r.tar", "--data-dir", str(data_dir), "--level", "recomputed")
    assert finished > 1
    assert [*json.loads(noted.read_text()).values()] == ["recomputed"]


def test_what_cannot_be_recomputed_is_listed(verify: Any, run: RunFolder) -> None:
    def drop(arrays: dict[str, Any]) -> None:
        del arrays["val_logits"], arrays["val_labels"]

    code, out, _ = verify(change=change_arrays(run, drop))
    assert code == 0
    assert "; not val_accuracy, val_loss" in out
    assert "no validation logits are stored" in out


def test_a_table_shows_rows_of_others_beside_ones_own_with_their_level(
    cli: Any, verify: Any, run: RunFolder
) -> None:
    runs = ["--runs-dir", str(run.path.parent)]
    assert verify("--level", "recomputed", *runs)[0] == 0
    code, out, _ = cli("table", *runs, "--with", "r.tar", "--format", "csv")
    assert code == 0
    lines = list(csv.DictReader(io.StringIO(out)))
    mine, theirs = (line for line in lines if line["baseline"] != "True")
    assert (mine["verified"], theirs["verified"]) == ("", "recomputed")
    assert (theirs["source"], theirs["run"]) == ("r.tar", f"r.tar:{run.name}")
    _, out, _ = cli("table", *runs, "--with", "r.tar", "--format", "markdown")
    assert out.count("20 test images") == 1  # one table, as it is one protocol
    assert "| logistic (r.tar) |" in out
    assert "verified: how far 'rows verify' checked" in out
    (run.path.parent / "verified.json").unlink()
    _, out, _ = cli("table", *runs, "--with", "r.tar", "--columns", "verified")
    assert "whole" in out


def test_rows_of_another_protocol_stand_apart_with_the_reason(
    cli: Any, verify: Any, run: RunFolder, data_dir: Path
) -> None:
    assert verify()[0] == 0
    stl10bench.train(
        *("logistic",), data_dir=data_dir, runs_dir=Path("mine"), threads=1, val_fraction=0, **TINY
    )
    code, out, _ = cli("table", "--runs-dir", "mine", "--with", "r.tar", "--format", "markdown")
    assert code == 0
    assert out.count("20 test images") == 2
    assert "r.tar stands apart: selection validation, yours last-epoch" in out


def test_a_refused_row_is_not_ranked(cli: Any, verify: Any, run: RunFolder) -> None:
    runs = ["--runs-dir", str(run.path.parent)]
    assert verify(*runs, change=change_row(run, test_ece=0.01))[0] == 8
    _, out, _ = cli("table", *runs, "--with", "r.tar", "--format", "json")
    theirs = next(row for row in json.loads(out) if row["source"])
    assert (theirs["verified"], theirs["vs_best"]) == ("refused", None)
    (run.path.parent / "verified.json").unlink()


def test_a_report_has_rows_of_others_and_the_command_that_verifies_them(
    cli: Any, verify: Any, run: RunFolder
) -> None:
    assert verify()[0] == 0
    runs = ["--runs-dir", str(run.path.parent)]
    code, _, err = cli("report", *runs, "--with", "r.tar", "--format", "markdown")
    text = Path("report.md").read_text()
    assert code == 0, err
    assert f"stl10bench rows verify r.tar {run.name} --level reproduced" in text
    assert f"stl10bench reproduce {run.name}" in text
    assert "logistic (r.tar)" in text
