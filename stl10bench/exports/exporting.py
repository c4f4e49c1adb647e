"""A checkpoint -> one of the formats, kept only if it gives the same logits; light at its top."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from stl10bench import extras, files
from stl10bench.errors import BenchError, StorageError, UsageError, unknown

if TYPE_CHECKING:
    from stl10bench.exports.comparison import Difference, Tolerance
    from stl10bench.predict import Predictor

# How far a logit may be off, as a share of the largest: at the size of the model's own input, and
# at others, where onnxruntime's resize may round a pixel by one of 255 levels unlike torch's.
TOLERANCES = {"onnx": (1e-3, 5e-2), "torch": (1e-3, 1e-3), "hub": (0.0, 0.0)}
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_ONNX = ("onnx", "onnxscript", "onnxruntime")


def export(
    checkpoint: str | Path, *, to: str, output: str | Path, overwrite: bool = False
) -> dict[str, Any]:
    """Write a checkpoint as onnx, torch (a .pt2) or hub (a folder) to `output`, and compare.

    What was written is loaded again and its logits are held against the checkpoint's for random
    images and edge cases; only then it gets its name. Returns what was found: `output`, `bytes`,
    and for `own_size` and `other_sizes` the largest difference of a logit, what is allowed and the
    number of images. Raises UsageError for an `output` that exists (without `overwrite`) or has
    another suffix than the format's, for an unknown format, an extra that is missing and a model
    that the format cannot express; CheckpointError; StorageError.
    """
    source, target = Path(checkpoint), Path(output)
    if to not in TOLERANCES:
        raise unknown("format", to, TOLERANCES)
    suffix = _SUFFIXES.get(to, "")
    if not target.name.endswith(suffix):
        raise UsageError(f"--output {target}: with --to {to} its name must end in {suffix}")
    _check_target(target, folder=to == "hub", overwrite=overwrite)
    for package in _ONNX if to == "onnx" else ():
        extras.require(package, extra="onnx", purpose="--to onnx")

    from stl10bench.exports.comparison import Tolerance
    from stl10bench.predict import load

    predictor, tolerance = load(source), Tolerance(*TOLERANCES[to])
    try:
        if to == "hub":
            own, others = _write_folder(source, predictor, target, tolerance)
        else:
            own, others = _write_file(predictor, to, target, tolerance)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error}") from error
    return {
        "checkpoint": str(source),
        "model": predictor.header.config.model,
        "to": to,
        "output": str(target),
        "bytes": sum(path.stat().st_size for path in (target, *target.glob("*")) if path.is_file()),
        "own_size": own._asdict(),
        "other_sizes": others._asdict(),
    }


def _check_target(target: Path, *, folder: bool, overwrite: bool) -> None:
    """Raise UsageError where `target` must not be written over."""
    if not target.exists():
        return
    if not overwrite:
        raise UsageError(f"{target} exists already: --overwrite replaces it")
    if folder != target.is_dir():
        kind = "folder" if target.is_dir() else "file"
        raise UsageError(f"{target} is a {kind}: give another --output")
    if folder:
        from stl10bench.exports.hub import FILES

        others = sorted(path.name for path in target.iterdir() if path.name not in FILES)
        if others:
            raise UsageError(
                f"{target} holds what no export wrote ({others[0]!r}): give another --output"
            )


def _write_file(
    predictor: "Predictor", to: str, target: Path, tolerance: "Tolerance"
) -> "tuple[Difference, Difference]":
    from stl10bench.exports import onnx, program
    from stl10bench.exports.comparison import compare

    kind = onnx if to == "onnx" else program
    with files.new_file(target) as part:
        try:
            kind.write(predictor, part)
            exported = kind.read(part)
        except (BenchError, OSError):
            raise
        except Exception as error:  # the exporters raise of all kinds
            name, first = predictor.header.config.model, str(error).strip().partition("\n")[0]
            raise UsageError(
                f"model {name!r} cannot be exported with --to {to}: "
                f"{type(error).__name__}: {first[:200]}"
            ) from error
        return compare(predictor, exported, tolerance)


def _write_folder(
    source: Path, predictor: "Predictor", target: Path, tolerance: "Tolerance"
) -> "tuple[Difference, Difference]":
    from stl10bench.exports import hub
    from stl10bench.exports.card import card, row_of
    from stl10bench.exports.comparison import compare
    from stl10bench.predict import load

    old = target.with_name(f".{target.name}.{uuid4().hex[:8]}.old")
    with files.new_folder(target) as part:
        header = predictor.header
        hub.write(source, header, card(header, row_of(source, header)), part)
        hub.check_backbone(part, predictor.model)
        found = compare(predictor, load(part), tolerance)
        if target.exists():
            target.rename(old)
    shutil.rmtree(old, ignore_errors=True)
    return found
