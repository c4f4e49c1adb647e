"""What a model costs to use: latency, speed and memory, on the machine that trained it."""

import resource
import statistics
import sys
import time

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stl10bench import augment
from stl10bench.batches import Images, Normalise

MEASURED = ("latency_ms", "latency_p95_ms", "inference_images_per_second", "peak_memory_mb")
BATCH = 250  # images of the throughput, or all where there are fewer
_WARM_UP = 3  # forward passes that do not count
_SECONDS = 1.0  # after which no further pass is begun
_PASSES = 5, 200  # at least, at most


def measure(
    model: nn.Module,
    test: Images,
    normalise: Normalise,
    image_size: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """What a row says of the cost of inference, uint8 images in and logits out, in one process.

    - `latency_ms`, `latency_p95_ms`: median and 95th percentile of single images, milliseconds
    - `inference_images_per_second`: the median of batches of BATCH
    - `peak_memory_mb`: the most that this process held until now, 10^6 bytes, of the GPU's memory
      where it uses one, else of the host's
    """
    model.eval()
    few = test.images[:BATCH].to(accelerator.device)

    @torch.no_grad()
    def seconds(images: Tensor) -> list[float]:
        times: list[float] = []
        while len(times) < _WARM_UP + _PASSES[0] or (
            sum(times) < _SECONDS and len(times) < _WARM_UP + _PASSES[1]
        ):
            started = time.perf_counter()
            with accelerator.autocast():
                model(normalise(augment.centre(images, image_size))).cpu()
            times.append(time.perf_counter() - started)
        return times[_WARM_UP:]

    alone = seconds(few[:1])
    return {
        "latency_ms": 1000 * statistics.median(alone),
        "latency_p95_ms": 1000 * statistics.quantiles(alone, n=20)[-1],
        "inference_images_per_second": len(few) / statistics.median(seconds(few)),
        "peak_memory_mb": _peak_bytes(accelerator.device) / 1e6,
    }


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
