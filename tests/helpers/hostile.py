"""Readers, and damaged inputs for them; as a program: `hostile.py READER COUNT SEED`.

A trial writes what a reader reads, damages it, and reads it. It must end, within seconds and
without much memory, in a value or in one of our errors, and leave nothing outside its folder.
"""

import faulthandler
import gzip
import hashlib
import io
import json
import random
import shutil
import sys
import tarfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console

from helpers import archives
from helpers.finished import scores
from helpers.layout import write_layout
from stl10bench.cli.settings import read_file
from stl10bench.config import make_config
from stl10bench.core import files
from stl10bench.core.errors import BenchError, BusyError, CheckpointError
from stl10bench.data.download import download_stl10
from stl10bench.data.image_folder import import_folder
from stl10bench.data.splits import split_validation
from stl10bench.data.stl10 import (
    NEEDED,
    Dataset,
    Split,
    open_dataset,
    open_unlabelled,
    read_folds,
)
from stl10bench.inference.predictor import load
from stl10bench.inference.shared_rows import Verifier, verify
from stl10bench.models import checkpoint
from stl10bench.models.factory import build_model
from stl10bench.results import history, predictions
from stl10bench.results.benchmark_table import FORMATS, show_rows, stored_rows
from stl10bench.results.row_archive import pack, unpack
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import resume
from stl10bench.training.evaluate import score
from stl10bench.training.resolve import check_settings

Damage = Callable[[random.Random, Path], None]

SECONDS = 20  # for one trial; the slowest takes a tenth of one
MEMORY = 512  # MB that a thousand trials may add
TEXT = 5000  # characters of an error, without the path
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.5),
    *(1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"), "", "x", "NaN", "0" * 64),
    *(
        "\0",
        "\n",
        "\x1b[31mred",
        "\ud800",
        "=1+1",
        "[red]",
        "a|b",
        "../../x",
        "é\u202e",
        "y" * 9999,
    ),
    *([], {}, [[]], [None], {"": {}}, [0] * 2000, ["a"] * 3, {"a": [1, {"b": float("nan")}]}),
    *("__DEEP__", "__WIDE__"),
)
_DEEP = "[" * 5000 + "]" * 5000
_WIDE = "{" + ",".join(f'"k{i}": {i}' for i in range(5000)) + "}"


class Reader(NamedTuple):
    """How a reader's files are made and damaged, and how it is called; all below one folder."""

    make: Callable[[Path], Any]
    damage: Damage
    read: Callable[[Path], Any]
    trials: int  # of the long run


# Damages.


def spoil(rng: random.Random, content: bytes) -> bytes:
    """Bytes with one to four of: flips, cuts, insertions, repetitions, extreme numbers."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        span = rng.choice((1, 2, 8, 64, 1000))
        extreme = rng.choice((0, 1, 2**31 - 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + span]
        elif kind == 3:
            data[at:at] = rng.randbytes(span)
        elif kind == 4:
            data[at:at] = data[at : at + span]
        elif kind == 5:
            data[at : at + 8] = extreme
        elif kind == 6:
            data[at : at + span] = bytes(span) if rng.random() < 0.5 else b"\xff\xfe" * span
        else:
            data[:8] = extreme
    return bytes(data)


def warp(rng: random.Random, value: Any) -> Any:
    """A JSON value with something in it, or all of it, replaced, removed, added or renamed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(JUNK)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    changed: Any = value.copy()
    kind = rng.randrange(6)
    if kind == 0:
        del changed[key]
    elif kind == 1 and isinstance(changed, dict):
        changed[str(rng.choice(JUNK))] = rng.choice(JUNK)
    elif kind == 1:
        changed.insert(key, rng.choice(JUNK))
    elif kind == 2 and isinstance(changed, dict):
        changed[str(rng.choice(JUNK))] = changed.pop(key)
    else:
        changed[key] = warp(rng, changed[key])
    return changed


def as_json(rng: random.Random, value: Any) -> bytes:
    """A value as JSON, sometimes with a key twice, or with what only a text can hold."""
    text = json.dumps(value)
    text = text.replace('"__DEEP__"', _DEEP).replace('"__WIDE__"', _WIDE)
    if text.startswith('{"') and rng.random() < 0.05:
        text = text[:-1] + ", " + text[1:]
    return text.encode()


def warped(rng: random.Random, content: bytes) -> bytes:
    """A JSON file, damaged as bytes or as a value."""
    if rng.random() < 0.3:
        return spoil(rng, content)
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 3))):
        value = warp(rng, value)
    return as_json(rng, value)


def damage_file(*names: str, how: Callable[[random.Random, bytes], bytes] = spoil) -> Damage:
    """Damages one of the files `names`, or removes it, or makes a folder or a link of it."""

    def damage(rng: random.Random, folder: Path) -> None:
        path = folder / rng.choice(names)
        kind = rng.random()
        if kind > 0.03:
            path.write_bytes(how(rng, path.read_bytes()))
            return
        path.unlink()
        if kind < 0.01:
            path.mkdir()
        elif kind < 0.02:
            path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/proc/self/mem", path.name)))

    return damage


# Checkpoints and weights.


def make_checkpoint(folder: Path) -> None:
    """A logistic regression, and one that is laid out in the same way but not ours."""
    config = make_config({"model": "mlp", "image_size": 8, "model_options": {"hidden": (2,)}})
    header = checkpoint.Header(
        config=config, class_names=("ant", "bee"), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    model = build_model("mlp", 2, 8, {"hidden": (2,)})
    checkpoint.save(folder / "best.safetensors", model, header)


def damage_tensors(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file, damaged as bytes, in its header, or in what we say in it."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    inner = json.loads(header["__metadata__"]["stl10bench"])
    kind = rng.randrange(4)
    if kind == 0:
        return spoil(rng, content)
    if kind == 1:  # its sum is made right again: whoever writes a file can do so
        tensors = safetensors.torch.load(content)
        if rng.random() < 0.2:
            odd = rng.choice((torch.float8_e4m3fn, torch.complex64, torch.int8, torch.float64))
            tensors = {key: value.to(odd) for key, value in tensors.items()}
        elif rng.random() < 0.1:
            tensors = {key: torch.full_like(value, float("nan")) for key, value in tensors.items()}
        del inner["sha256"]
        inner = warp(rng, inner)
        if isinstance(inner, dict):
            try:
                inner["sha256"] = checkpoint._sum(inner, tensors)
            except (ValueError, TypeError):  # NaN: no sum of ours is over it
                inner["sha256"] = "0" * 64
        return safetensors.torch.save(
            tensors, {"stl10bench": as_json(rng, inner).decode("utf-8", "replace")}
        )
    if kind == 2:
        header["__metadata__"]["stl10bench"] = as_json(rng, warp(rng, inner)).decode()
    else:
        for _ in range(rng.choice((1, 2))):
            header = warp(rng, header)
    changed = as_json(rng, header)
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


def make_predictions(folder: Path) -> None:
    arrays = {
        **{"logits": np.ones((4, 2), np.float32), "labels": np.array([0, 1, 0, 1])},
        **{"val_logits": np.ones((2, 2), np.float32), "val_labels": np.array([0, 1])},
    }
    predictions.save(folder / "p.safetensors", arrays)


def damage_arrays(rng: random.Random, content: bytes) -> bytes:
    """A file of predictions, damaged as bytes, in its header, or with the sum of other arrays."""
    if rng.random() < 0.3:
        return spoil(rng, content)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if rng.random() < 0.5:
        header.pop("__metadata__")  # then there is no sum
    header = as_json(rng, warp(rng, header))
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


CONFIG = make_config({"model": "logistic", "image_size": 8})


def make_state(folder: Path) -> None:
    """A checkpoint of a run between two steps."""
    model = build_model("logistic", 2, 8, {})
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    header = checkpoint.Header(
        config=CONFIG, class_names=("ant", "bee"), mean=(0.5,) * 3, std=(0.5,) * 3, epoch=1
    )
    weights = model.state_dict()
    stored = resume.State(
        position=resume.Position(epoch=1, batch=2, sums=[[1.0, 2.0, 3.0]]),
        mark=resume.LogMark(size=10, sha256="0" * 64),
        processes=1,
        threads=1,
        model=weights,
        optimizer=optimizer.state_dict(),
        scaler={},
        header=header,
        best=resume.Best(header, weights, 1.5),
        ema={},
    )
    resume.save_state(RunFolder(folder), CONFIG, 7, stored)


def damage_state(rng: random.Random, folder: Path) -> None:
    """A manifest with sums that are right for what it now says, or any damage to the two files."""
    place = folder / "checkpoints" / "step-00000007"
    if rng.random() < 0.4:
        damage_file("manifest.json", "state.safetensors")(rng, place)
        return
    content = json.loads((place / "manifest.json").read_bytes())
    tensors = place / "state.safetensors"
    if rng.random() < 0.3:
        tensors.write_bytes(spoil(rng, tensors.read_bytes()))
        found = tensors.read_bytes()
        content["tensors"] = {"size": len(found), "sha256": hashlib.sha256(found).hexdigest()}
    else:
        content = warp(rng, content)
    if isinstance(content, dict):
        content.pop("sha256", None)
        with suppress(ValueError):  # NaN: no manifest of ours holds one
            (place / "manifest.json").write_bytes(resume._signed(content))


def read_state(folder: Path) -> None:
    with warnings.catch_warnings():
        stored = resume.newest(RunFolder(folder), CONFIG)
    if stored is None:
        return
    model = build_model("logistic", 2, 8, {})
    checkpoint.fill(model, stored.model, folder)
    resume.restore_optimizer(torch.optim.AdamW(model.parameters(), foreach=False), stored.optimizer)


def make_run(folder: Path) -> None:
    """The files that say how a run stands."""
    config = CONFIG.model_dump(mode="json")
    status = {"state": "diverged", "reason": "", "since": 1.0, "pid": 1, "host": "x", "step": 3}
    files.write_json(folder / "run" / "config.json", config)
    files.write_json(folder / "run" / "result.json", {**ROW, "config": config})
    files.write_json(folder / "run" / "status.json", {**status, "last_finite_loss": None})


def damage_run(rng: random.Random, folder: Path) -> None:
    if rng.random() < 0.7:
        (folder / "run" / "result.json").unlink()
        damage_file("config.json", "status.json", how=warped)(rng, folder / "run")
    else:
        damage_file("result.json", how=warped)(rng, folder / "run")


def read_run(folder: Path) -> None:
    run = RunFolder(folder / "run")
    with run.lock(), suppress(BusyError), run.lock():
        raise AssertionError("two own one folder")
    run.ended(CONFIG)


# Archives of rows.

LABELS = np.arange(40) % 2


def make_shared_run(runs_dir: Path, **options: Any) -> RunFolder:
    """The folder of a finished run that was never trained: its files belong together."""
    torch.manual_seed(0)
    config = CONFIG.model_copy(
        update={"data": "0f", "precision": "no", "model_options": options, "image_size": 8}
    )
    folder = RunFolder(runs_dir / config.name)
    logits = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    _, rows = split_validation(LABELS, config.val_fraction, config.seed)
    arrays = {
        **{"logits": logits[:40], "labels": LABELS},
        **{"val_logits": logits[40:44], "val_labels": LABELS[rows]},
    }
    header = checkpoint.Header(
        config=config, class_names=("ant", "bee"), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    checkpoint.save(folder.best_file, build_model("logistic", 2, 8, {}), header)
    predictions.save(folder.predictions_file, arrays)
    validation = torch.from_numpy(arrays["val_logits"]), torch.from_numpy(arrays["val_labels"])
    validated = score(*validation, "val")
    row = {
        **{"run": folder.name, "model": "logistic", "model_options": options, "seed": 0},
        **{"dataset": "STL-10 layout", "selection": "validation", "precision": "no", "epochs": 20},
        **{"config": config.model_dump(mode="json"), "image_size": 8, "checkpoint": None},
        **{"val_accuracy": validated["val/accuracy"], "val_loss": validated["val/loss"]},
        **scores(arrays["logits"], LABELS, (arrays["val_logits"], arrays["val_labels"])),
    }
    files.write_json(folder.config_file, config.model_dump(mode="json"))
    files.write_json(folder.result_file, row)
    return folder


def make_rows(folder: Path) -> None:
    run = make_shared_run(folder / "runs")
    pack(folder / "rows.tar", [run], with_checkpoint=True)
    shutil.rmtree(run.path.parent)


def damage_rows(rng: random.Random, content: bytes) -> bytes:
    """An archive, damaged as bytes or in a header, or forged, with right sums."""
    kind = rng.randrange(4)
    if kind == 0:
        return spoil(rng, content)
    if kind == 1:
        return damage_header(rng, bytearray(content))
    path = Path("forged.tar")
    path.write_bytes(content)
    contents = archives.members(path)
    name = rng.choice(list(contents))
    suffix = name.rpartition(".")[2]
    how = {"json": warped, "safetensors": damage_arrays if "pred" in name else damage_tensors}
    if kind == 2:
        contents[name] = how[suffix](rng, contents[name])
    else:
        moved = contents.pop(name) if rng.random() < 0.7 else b""
        run = name.partition("/")[0]
        contents[rng.choice(("../x", f"{run}/x", f"{run}/last.safetensors", "x/y", name))] = moved
    archives.write(path, contents)
    forged = path.read_bytes()
    path.unlink()
    return forged


def read_rows_archive(folder: Path) -> None:
    """Unpack, then hold the figures to the labels of the data."""
    runs = unpack(folder / "rows.tar", folder / "runs")
    images = np.zeros((40, 3, 8, 8), np.uint8)
    train, test = Split(images, LABELS), Split(images, LABELS)
    data = Dataset("STL-10 layout", "0f", ("ant", "bee"), folder, train, test)
    verifier = Verifier(data, "cpu", 1, folder / "again", {}, 1, Console(quiet=True))
    for shared in runs:
        verified = verify(shared, verifier, "recomputed")
        if verified.error is not None:
            raise verified.error


# Rows, settings, data, archives and images.

ROW = {
    **{"run": "mlp-0", "model": "mlp", "model_options": {"hidden": [8], "freeze": True}},
    **{"dataset": "STL-10", "test_loss": 1.25, "test_accuracy": 0.5, "test_images": 8000},
    **{"test_accuracy_interval": [0.4, 0.6], "val_accuracy": 0.5, "parameters": 64, "macs": 64},
    **{"trainable_parameters": 12, "image_size": 64, "pretrained": True, "seed": 0, "epochs": 3},
    **{"selection": "hold-out", "precision": "no", "processes": 1, "train_seconds": 1.5},
    **{"images_per_second": 15.5, "stacked": 1, "confusion": [[2000, 2000], [2000, 2000]]},
    **{"per_class_accuracy": [0.5, 0.5], "test_brier": 0.5, "test_ece": 0.1, "best_epoch": 2},
}


def make_row(folder: Path) -> None:
    for number in range(2):
        (folder / str(number)).mkdir()
        row = ROW | {"config": {"data": "0f", "model_options": {}, "seed": number, "fold": None}}
        (folder / str(number) / "result.json").write_text(json.dumps(row))
    files.write_json(folder / "2" / "config.json", CONFIG.model_dump(mode="json"))
    files.write_json(folder / "2" / "status.json", {"state": "failed", "reason": "no memory"})


def damage_row(rng: random.Random, folder: Path) -> None:
    name = rng.choice(("0/result.json", "0/result.json", "2/config.json", "2/status.json"))
    damage_file(name, how=warped)(rng, folder)


def show_all(folder: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # each damaged file is one
        rows, _ = stored_rows(folder)
    for style in FORMATS:
        console = Console(file=io.StringIO(), width=100, force_terminal=style == "table")
        show_rows(rows, style, console)
        assert "\x1b[31mred" not in console.file.getvalue()  # type: ignore[attr-defined]


def make_log(folder: Path) -> None:
    lines = [{"step": 3 * n, "epoch": n, "val/loss": 1.5, "lr": None} for n in range(1, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files.write_json(folder / "config.json", CONFIG.model_dump(mode="json"))


def damage_log(rng: random.Random, content: bytes) -> bytes:
    """A log damaged as bytes, or in one of its lines."""
    if rng.random() < 0.4:
        return spoil(rng, content)
    lines = content.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = warped(rng, lines[number])
    return b"\n".join(lines) + b"\n"


def read_log(folder: Path) -> None:
    found = history.read(RunFolder(folder))
    history.labels([found, found._replace(name="x")])
    for path in found.values:
        assert len(found.series(path)) == len(found.epochs)


def make_settings(folder: Path) -> None:
    config = make_config({"model": "mlp", "model_options": {"hidden": (8,), "dropout": 0.5}})
    (folder / "config.json").write_text(config.model_dump_json())


def read_settings(folder: Path) -> None:
    given = {key: setting.value for key, setting in read_file(folder / "config.json").items()}
    for name in ("model", "weights", "pretrained"):
        given.pop(name, None)
    check_settings("mlp", settings=given)


def make_data(folder: Path) -> None:
    write_layout(folder, train=4, test=2, names=("ant", "bee"))
    inside = folder / "stl10_binary"
    (inside / "fold_indices.txt").write_text("0 1 2 \n1 3 \n")
    shutil.copy(inside / "test_X.bin", inside / "unlabeled_X.bin")
    open_dataset(folder)  # writes the stamp
    sums = {name: files.digests(inside / name, "sha256")[0] for name in NEEDED}
    (inside / "demo.json").write_text(json.dumps({"generator": 1, "seed": 0, "sha256": sums}))


def damage_data(rng: random.Random, folder: Path) -> None:
    inside = folder / "stl10_binary"
    if rng.random() < 0.7:
        (inside / "demo.json").unlink()
        names: tuple[str, ...] = (*NEEDED, "fold_indices.txt", "unlabeled_X.bin")
        how = spoil
    else:
        names, how = ("demo.json", ".stl10bench.json"), warped
    damage_file(*names, how=how)(rng, inside)


def read_data(folder: Path) -> None:
    failures = []
    for read in (open_unlabelled, lambda f: read_folds(open_dataset(f))):
        try:
            read(folder)
        except BenchError as error:
            failures.append(error)
    if failures:
        raise failures[0]


CONTENT = {"train_y.bin": bytes(range(1, 11)) * 2, "class_names.txt": b"ant\nbee\n"}
EXPECTED = {
    name: (len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())
    for name, content in CONTENT.items()
}


def make_archive(folder: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in CONTENT.items():
            member = tarfile.TarInfo(f"stl10_binary/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (folder / "a.tar.gz").write_bytes(gzip.compress(packed.getvalue(), 1))


def damage_archive(rng: random.Random, content: bytes) -> bytes:
    """A gzipped tar, damaged as bytes, within, or in a header whose checksum is made right."""
    kind = rng.randrange(3)
    if kind == 0:
        return spoil(rng, content)
    plain = bytearray(gzip.decompress(content))
    if kind == 1:
        return gzip.compress(spoil(rng, bytes(plain)), 1)
    return gzip.compress(damage_header(rng, plain), 1)


def damage_header(rng: random.Random, plain: bytearray) -> bytes:
    """A tar with something else in a field of a header, whose checksum is made right."""
    start = rng.choice((0, 1024))
    header = plain[start : start + 512]
    place, size = rng.choice(
        ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155))
    )
    junk = (
        b"../../x",
        b"/etc/x",
        b"\xff" * 8,
        b"7" * 11,
        b"\x80" + b"\xff" * 11,
        b"\0",
        b"LKx12SV",
    )
    header[place : place + size] = rng.choice(junk)[:size].ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    plain[start : start + 512] = header
    return bytes(plain)


def read_archive(folder: Path) -> None:
    download_stl10(
        folder / "data",
        source=folder / "a.tar.gz",
        members=("train_y.bin",),
        expected=EXPECTED,
        console=Console(quiet=True),
    )


_FORMATS = ("jpg", "png", "webp", "bmp", "gif", "tiff", "ppm")


def make_images(folder: Path) -> None:
    for index, suffix in enumerate(_FORMATS):
        for name in ("ant", "bee"):
            (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
            image = Image.linear_gradient("L").resize((24, 20)).convert("RGB")
            image.save(folder / "photos" / name / f"{index}.{suffix}")


def damage_images(rng: random.Random, folder: Path) -> None:
    for suffix in range(len(_FORMATS)):
        damage_file(f"{suffix}.{_FORMATS[suffix]}")(rng, folder / "photos" / "ant")


def read_images(folder: Path) -> None:
    import_folder(folder / "photos", folder / "data", skip_broken=True)


READERS: dict[str, Reader] = {
    "checkpoint": Reader(
        make_checkpoint,
        damage_file("best.safetensors", how=damage_tensors),
        lambda folder: load(folder / "best.safetensors"),
        4000,
    ),
    "weights": Reader(
        make_checkpoint,
        damage_file("best.safetensors", how=damage_tensors),
        lambda folder: checkpoint.read_tensors(folder / "best.safetensors"),
        3000,
    ),
    "predictions": Reader(
        make_predictions,
        damage_file("p.safetensors", how=damage_arrays),
        lambda folder: predictions.read(folder / "p.safetensors"),
        1000,
    ),
    "state": Reader(make_state, damage_state, read_state, 2000),
    "run": Reader(make_run, damage_run, read_run, 2000),
    "row": Reader(make_row, damage_row, show_all, 2000),
    "rows": Reader(make_rows, damage_file("rows.tar", how=damage_rows), read_rows_archive, 5000),
    "log": Reader(make_log, damage_file("metrics.jsonl", how=damage_log), read_log, 1000),
    "settings": Reader(make_settings, damage_file("config.json", how=warped), read_settings, 2000),
    "json": Reader(
        make_settings,
        damage_file("config.json", how=warped),
        lambda folder: files.read_json(folder / "config.json", CheckpointError),
        2000,
    ),
    "data": Reader(make_data, damage_data, read_data, 2000),
    "archive": Reader(
        make_archive, damage_file("a.tar.gz", how=damage_archive), read_archive, 2000
    ),
    "images": Reader(make_images, damage_images, read_images, 300),  # seven images each
}


def trial(reader: Reader, rng: random.Random, made: Path, folder: Path) -> str:
    """Read a damaged copy of `made` as `folder`; returns the error's text, or "".

    Raises AssertionError, or whatever else the reader should not have raised.
    """
    around = {*folder.parent.rglob("*"), *Path().iterdir()}
    shutil.copytree(made, folder, symlinks=True)
    reader.damage(rng, folder)
    text = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # ours: what is left out, or made anew
            warnings.simplefilter("ignore", ResourceWarning)  # Pillow's
            reader.read(folder)
    except BenchError as error:
        text = str(error).replace(str(folder), "") or "no text"
    finally:
        shutil.rmtree(folder)
    left = {*folder.parent.rglob("*"), *Path().iterdir()} - around
    assert not left, f"files outside: {left}"
    assert text.isprintable(), repr(text)
    assert len(text) < TEXT, text[:TEXT]
    return text


def main(name: str, count: int, seed: int) -> None:
    """`count` trials of a reader, with limits on time and memory; prints what they came to."""
    import resource  # of POSIX systems

    reader, here = READERS[name], Path("trial").absolute()
    (here / "made").mkdir(parents=True)
    reader.make(here / "made")
    trial(reader, random.Random(0), here / "made", here / "first")  # imports what is imported late
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number in range(count):
        rng = random.Random(f"{name} {seed} {number}")
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            refused += trial(reader, rng, here / "made", here / str(number)) != ""
        except BaseException:
            print(f"{name}: seed {seed}, trial {number}", file=sys.stderr)
            raise
        faulthandler.cancel_dump_traceback_later()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"{name}: {count:,} damaged inputs, {refused:,} refused, {grown} MB more")
    assert grown < MEMORY


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
