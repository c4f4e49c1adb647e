"""A model's layers -> tables: each layer, the sum of each block, memory."""

from collections.abc import Sequence

from stl10bench.models.summary import Layer, Memory, blocks
from stl10bench.results.table import Table

_MEMORY = "fp32, 1 MB = 2^20 bytes; forward/backward: twice the outputs of the listed layers"


def layer_table(title: str, layers: Sequence[Layer]) -> Table:
    """A line for each layer, numbered; at the end of each block its sum, and below the totals."""
    lines: list[tuple[str, ...]] = []
    for block in blocks(layers):
        for layer in block:
            numbers = (_count(layer.parameters), _count(layer.macs))
            lines.append(
                (str(len(lines) + 1), layer.kind, shape(layer), *numbers, layer.formula, "")
            )
        lines[-1] = (*lines[-1][:-1], _count(sum(layer.parameters for layer in block)))
    totals = (sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers))
    lines.append(("", "total", "", *(f"{total:,}" for total in totals), "", f"{totals[0]:,}"))
    header = ("", "layer", "output", "parameters", "MACs", "parameters are", "of the block")
    return Table(title, header, tuple(lines), left=("layer", "output", "parameters are"))


def block_table(title: str, layers: Sequence[Layer]) -> Table:
    """A line for each block: what it is, its last output, its layers, parameters and MACs."""
    lines = []
    for number, block in enumerate(blocks(layers), 1):
        counts = (sum(layer.parameters for layer in block), sum(layer.macs for layer in block))
        output = next((shape(layer) for layer in reversed(block) if layer.shape), "-")
        name = block[0].name.removeprefix("backbone.").rpartition(".")[0]
        name = ".".join(name.split(".")[:2]) or block[0].name.removeprefix("backbone.")
        lines.append((str(number), name, output, str(len(block)), *map(_count, counts)))
    totals = (sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers))
    lines.append(("", "total", "", str(len(layers)), *(f"{total:,}" for total in totals)))
    header = ("", "block", "output", "layers", "parameters", "MACs")
    return Table(title, header, tuple(lines), left=("block", "output"))


def memory_table(title: str, memories: dict[str, Memory]) -> Table:
    """The memory of a training step of each model, in MB."""
    lines = tuple(
        (name, *(f"{size / 2**20:.2f}" for size in (*vars(memory).values(), memory.total)))
        for name, memory in memories.items()
    )
    header = ("MB", "input", "forward/backward", "parameters", "total")
    return Table(title, header, lines, (("total", _MEMORY),))


def shape(layer: Layer) -> str:
    """The output of a layer, without the batch."""
    return "x".join(map(str, layer.shape)) or "-"


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"
