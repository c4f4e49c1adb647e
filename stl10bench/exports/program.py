"""A trained model <-> a program of torch.export (.pt2) that takes images as they are."""

import json
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from stl10bench.exports.metadata import metadata
from stl10bench.predict import Predictor

METADATA = "metadata.json"  # among the program's extra files
AXES = {0: "batch", 2: "height", 3: "width"}  # that any image may have its own of


@torch.no_grad()
def trace(predictor: nn.Module) -> ExportedProgram:
    """The graph from uint8 images (N, 3, H, W) to logits (N, C), for any N, H and W.

    It tells nothing of the machine: the paths of the source files are taken out.
    """
    images = torch.zeros(3, 3, 80, 120, dtype=torch.uint8)  # sizes that no layer has as its own
    free = {axis: Dim(name, min=1) for axis, name in AXES.items()}
    with redirect_stderr(
        StringIO()
    ):  # where torch prints the graph of a model that it cannot trace
        program = torch.export.export(predictor, (images,), dynamic_shapes=(free,))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def write(predictor: Predictor, path: Path) -> None:
    """Write what `trace` gives, and `metadata` as the extra file metadata.json."""
    content = json.dumps(metadata(predictor.header), indent=2)
    torch.export.save(trace(predictor), path, extra_files={METADATA: content})


def read(path: Path) -> Callable[[Tensor], Tensor]:
    """The program in a .pt2 that this process has just written.

    Not for the files of others: a .pt2 is an archive that may hold pickles, which can run code.
    """
    module: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return module
