"""A checkpoint -> ONNX or a torch.export program, compared with the model before it is kept."""

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, UsageError, cause, require, unknown
from stl10bench.inference.hub import FILES, check_backbone, export_metadata, write_folder
from stl10bench.inference.predictor import Predictor, find_checkpoint, load
from stl10bench.inference.push import check_repository, push


def write_onnx(predictor: Predictor, path: Path) -> None:
    """Write `predictor` as ONNX: `images` uint8 (N, 3, H, W) -> `logits` float32 (N, C).

    N, H and W are free; the resize, the crop and the normalisation are in the graph. `metadata` is
    in the file's metadata, each value as JSON.
    """
    # torch 2.10 prints its progress, whatever `verbose` says; its warnings are about its own calls.
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the result is compared
        program = torch.onnx.export(
            trace_program(predictor),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(AXES,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    values = {key: json.dumps(value) for key, value in export_metadata(predictor.header).items()}
    program.model.metadata_props.update(values)
    program.save(path)


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """The model in an ONNX file, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


PROGRAM_METADATA = "metadata.json"  # among the program's extra files
AXES = {0: "batch", 2: "height", 3: "width"}  # that any image may have its own of


@torch.no_grad()
def trace_program(predictor: nn.Module) -> ExportedProgram:
    """The graph from uint8 images (N, 3, H, W) to logits (N, C), for any N, H and W.

    It tells nothing of the machine: the paths of the source files are taken out.
    """
    images = torch.zeros(3, 3, 80, 120, dtype=torch.uint8)  # sizes that no layer has as its own
    free = {axis: Dim(name, min=1) for axis, name in AXES.items()}
    with redirect_stderr(StringIO()):  # torch prints the graph of a model that it cannot trace
        program = torch.export.export(predictor, (images,), dynamic_shapes=(free,))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def write_program(predictor: Predictor, path: Path) -> None:
    """Write what `trace` gives, and `metadata` as the extra file metadata.json."""
    content = json.dumps(export_metadata(predictor.header), indent=2)
    torch.export.save(trace_program(predictor), path, extra_files={PROGRAM_METADATA: content})


def read_program(path: Path) -> Callable[[Tensor], Tensor]:
    """The program in a .pt2 that this process has just written.

    Not for the files of others: a .pt2 is an archive that may hold pickles, which can run code.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.10 warns of the buffers that it reads
        module: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return module


OTHER_SIZES = ((96, 96), (80, 120), (33, 97), (240, 320), (1, 1))  # height and width, pixels


class Tolerance(NamedTuple):
    """How far a logit may be off, as a share of the largest one (at least of 1)."""

    own_size: float
    other_sizes: float


class Difference(NamedTuple):
    """How far a logit was off at most, over `images`, and how far it might have been."""

    found: float
    allowed: float
    images: int


@torch.no_grad()
def compare_outputs(
    predictor: Predictor, exported: Callable[[Tensor], Tensor], tolerance: Tolerance
) -> dict[str, Difference]:
    """How far the logits of `exported` are from `predictor`'s for uint8 images (N, 3, H, W).

    `own_size`: at the size to which the predictor resizes; `other_sizes`: at others. The images are
    noise, smooth, black, white, grey and a chessboard, alone and in batches. Raises CheckpointError
    when they differ by more than `tolerance` allows, or by what is no number.
    """
    side = predictor.side
    differences = {}
    for key, where, sizes, share in (
        ("own_size", f"at {side}x{side} px", ((side, side),), tolerance.own_size),
        ("other_sizes", "at other sizes", OTHER_SIZES, tolerance.other_sizes),
    ):
        batches = [batch for size in sizes for batch in _images(size)]
        expected = torch.cat([predictor(batch) for batch in batches])
        logits = torch.cat([exported(batch) for batch in batches])
        assert logits.shape == expected.shape
        largest = float((logits - expected).abs().max())
        allowed = float(share * expected.abs().max().clamp(min=1))
        if not largest <= allowed:  # what is no number is no success
            raise CheckpointError(
                f"the logits of the exported model differ {where} by {largest:.1e} ({allowed:.1e} "
                "is allowed): nothing was written"
            )
        differences[key] = Difference(largest, allowed, len(expected))
    return differences


def _images(size: tuple[int, int]) -> list[Tensor]:
    """Three batches: of eight images, of one, of four."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 3, *size), generator=generator, dtype=torch.uint8)
    coarse = torch.rand(5, 3, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    smooth = (255 * smooth).to(torch.uint8)
    rows, columns = torch.arange(size[0]).unsqueeze(1), torch.arange(size[1])
    board = (255 * ((rows + columns) % 2)).to(torch.uint8).expand(1, 3, *size)
    plain = torch.stack([torch.full((3, *size), v, dtype=torch.uint8) for v in (0, 255, 127)])
    return [torch.cat([noise, smooth[:4]]), smooth[4:], torch.cat([plain, board])]


# How far a logit may be off, as a share of the largest: at the size of the model's own input, and
# at others, where onnxruntime's resize may round a pixel by one of 255 levels unlike torch's.
TOLERANCES = {"onnx": (1e-3, 5e-2), "torch": (1e-3, 1e-3), "hub": (0.0, 0.0)}
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_ONNX = ("onnx", "onnxscript", "onnxruntime")


def export(
    checkpoint: str | Path,
    *,
    to: str,
    output: str | Path,
    overwrite: bool = False,
    repository: str | None = None,
) -> dict[str, Any]:
    """Write a checkpoint as onnx, torch (a .pt2) or hub (a folder) to `output`, and compare.

    The card of a folder speaks of `repository` on the hub, if one is named.

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
        raise UsageError(f"--output {target}: must end in {suffix} with --to {to}")
    _check_target(target, folder=to == "hub", overwrite=overwrite)
    for package in _ONNX if to == "onnx" else ():
        require(package, extra="onnx", purpose="--to onnx")

    source = find_checkpoint(source)
    predictor, tolerance = load(source), Tolerance(*TOLERANCES[to])
    with files.storage_errors(f"cannot write {target}"):
        if to == "hub":
            differences = _write_folder(source, predictor, target, tolerance, repository)
        else:
            differences = _write_file(predictor, to, target, tolerance)
    return {
        "checkpoint": str(source),
        "model": predictor.header.config.model,
        "to": to,
        "output": str(target),
        "bytes": sum(path.stat().st_size for path in (target, *target.glob("*")) if path.is_file()),
        **{key: difference._asdict() for key, difference in differences.items()},
    }


def export_and_push(
    checkpoint: str | Path,
    repository: str,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    private: bool | None = None,
    dry: bool = False,
) -> dict[str, Any]:
    """Export a checkpoint for the hub and push it to OWNER/NAME there.

    Returns what `export` returns, `files` (name -> bytes) and the `commit`'s address; without an
    `output` no folder is kept. With `dry` nothing is pushed or kept. Raises what `export` raises,
    UsageError without a token or for a name that cannot be, and StorageError for the hub's answer.
    """
    check_repository(repository, dry=dry)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "export" if output is None or dry else Path(output)
        facts = export(
            checkpoint, to="hub", output=folder, overwrite=overwrite, repository=repository
        )
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        commit = None if dry else push(folder, repository, private=private)
    kept = None if output is None or dry else str(output)
    return {**facts, "output": kept, "files": sizes, "commit": commit}


def _check_target(target: Path, *, folder: bool, overwrite: bool) -> None:
    """Raise UsageError where `target` must not be written over."""
    if not target.exists():
        return
    if not overwrite:
        raise UsageError(f"{target} exists already: pass --overwrite to replace it")
    if folder != target.is_dir():
        kind = "folder" if target.is_dir() else "file"
        raise UsageError(f"{target} is a {kind}: choose another --output")
    if folder:
        others = sorted(path.name for path in target.iterdir() if path.name not in FILES)
        if others:
            raise UsageError(f"{target} has other files ({others[0]!r}): choose another --output")


def _write_file(
    predictor: Predictor, to: str, target: Path, tolerance: Tolerance
) -> dict[str, Difference]:
    write, read = (write_onnx, read_onnx) if to == "onnx" else (write_program, read_program)
    with files.new_file(target) as part:
        try:
            write(predictor, part)
            exported: Callable[[Tensor], Tensor] = read(part)
        except OSError:
            raise
        except Exception as error:  # the exporters raise of all kinds
            name = predictor.header.config.model
            raise UsageError(
                f"cannot export model {name!r} with --to {to}: {cause(error)}"
            ) from error
        return compare_outputs(predictor, exported, tolerance)


def _write_folder(
    source: Path,
    predictor: Predictor,
    target: Path,
    tolerance: Tolerance,
    repository: str | None,
) -> dict[str, Difference]:
    old = target.with_name(f".{target.name}.{uuid4().hex[:8]}.old")
    with files.new_folder(target) as part:
        write_folder(source, predictor.header, part, repository)
        check_backbone(part, predictor.model)
        differences = compare_outputs(predictor, load(part), tolerance)
        if target.exists():
            target.rename(old)
    shutil.rmtree(old, ignore_errors=True)
    return differences
