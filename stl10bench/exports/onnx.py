"""A trained model <-> an ONNX file that takes images as they are."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stl10bench.exports.metadata import metadata
from stl10bench.exports.program import AXES, trace
from stl10bench.predict import Predictor


def write(predictor: Predictor, path: Path) -> None:
    """Write `predictor` as ONNX: `images` uint8 (N, 3, H, W) -> `logits` float32 (N, C).

    N, H and W are free; the resize, the crop and the normalisation are in the graph. `metadata` is
    in the file's metadata, each value as JSON.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own calls; the result is compared
        program = torch.onnx.export(
            trace(predictor),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(AXES,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    values = {key: json.dumps(value) for key, value in metadata(predictor.header).items()}
    program.model.metadata_props.update(values)
    program.save(path)


def read(path: Path) -> Callable[[Tensor], Tensor]:
    """The model in an ONNX file, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
