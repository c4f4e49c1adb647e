"""What travels with an exported model: its classes, its preprocessing, its settings."""

from typing import Any

from stl10bench.checkpoint import Header


def metadata(header: Header) -> dict[str, Any]:
    """JSON values; `class_names` are in the order of the logits, `mean` and `std` of 0..1.

    The model itself resizes, crops and normalises: they tell what it does.
    """
    return {
        "class_names": list(header.class_names),
        "mean": list(header.mean),
        "std": list(header.std),
        "image_size": header.config.image_size,
        "input": header.config.input,
        "stl10bench": header.model_dump(mode="json"),
    }
