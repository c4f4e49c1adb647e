"""A model and images -> logits in the images' order; features of a frozen backbone."""

import math
from collections.abc import Callable

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn import functional as F

from stl10bench.config import RunConfig
from stl10bench.core.errors import StorageError
from stl10bench.data import augment
from stl10bench.data.loader import Images, Normalise
from stl10bench.models.classifier import Classifier

EVALUATION_BATCH = 250  # images per process; small enough for every model here on a small GPU


@torch.no_grad()
def compute_logits(
    model: nn.Module,
    images: Tensor,
    normalise: Normalise,
    image_size: int,
    accelerator: Accelerator,
    *,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """float32 logits (N, C), on the CPU, of uint8 images (N, 3, S, S), in their order.

    Each process takes an equal share, the last one padded by repeating the last image; the
    logits are gathered and the padding cut off by our own count. `check` is called before each
    batch and may raise.
    """
    model.eval()
    device = accelerator.device
    for buffer in model.buffers():  # batch-norm statistics: those of rank 0 are saved, so use them
        buffer.copy_(broadcast(buffer))
    share = math.ceil(len(images) / accelerator.num_processes)
    rows = torch.arange(share) + share * accelerator.process_index
    logits = []
    with accelerator.autocast():
        for part in rows.clamp(max=len(images) - 1).to(images.device).split(EVALUATION_BATCH):
            check()
            batch = augment.centre(images.index_select(0, part).to(device), image_size)
            logits.append(model(normalise(batch)))
    gathered: Tensor = accelerator.gather(torch.cat(logits).float())
    return gathered[: len(images)].cpu()


class Mirrored(nn.Module):
    """A model that sees each image from left to right."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of float images (N, 3, H, W)."""
        logits: Tensor = self.model(images.flip(3))
        return logits


def score(logits: Tensor, labels: Tensor, split: str) -> dict[str, float]:
    """`<split>/loss`, the mean NLL in nats, and `<split>/accuracy`, top-1 in 0..1.

    Of logits (N, C) and labels (N,), in float64 on the CPU; hits are counted as integers and of
    equal logits the first class counts.
    """
    logits, labels = logits.cpu().double(), labels.cpu()
    hits = int((logits.argmax(1) == labels).sum())
    return {
        f"{split}/loss": F.cross_entropy(logits, labels).item(),
        f"{split}/accuracy": hits / len(labels),
    }


def fuse_frozen(model: nn.Module, images: Images, normalise: Normalise, config: RunConfig) -> None:
    """Fuse a frozen backbone, in the run's precision; other models are left alone."""
    if isinstance(model, Classifier):
        few = augment.centre(images.images[:4].to(normalise.mean.device), config.image_size)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)
        model.fuse(normalise(few), dtype)


@torch.no_grad()
def features_of_views(
    front: Callable[[Tensor], Tensor],
    train: Images,
    normalise: Normalise,
    config: RunConfig,
    accelerator: Accelerator,
) -> list[Tensor]:
    """float32 (N, ...), `cache_views` times: what `front` makes of augmented views of each image.

    Raises StorageError where they would not fit the memory.
    """
    device, size = accelerator.device, train.images.shape[-1]
    views: list[Tensor] = []
    for view in range(1, config.cache_views + 1):
        for batch, images in enumerate(torch.split(train.images, config.batch_size)):
            draws = augment.draw(config, config.batch_size, size, epoch=view, batch=batch)
            draws = draws.rows(0, len(images), device)
            with accelerator.autocast():
                augmented = normalise(augment.apply(images.to(device), draws, config))
                part = front(augmented).float()
            if not batch:
                if not views:
                    _check_memory(part[0].nbytes * len(train.images), config, accelerator)
                views.append(part.new_empty(len(train.images), *part.shape[1:]))
            start = batch * config.batch_size
            views[-1][start : start + len(part)] = part
    return views


def _check_memory(view: int, config: RunConfig, accelerator: Accelerator) -> None:
    """Raise StorageError unless the memory has room for the views, of `view` bytes each."""
    device = accelerator.device
    if device.type == "cuda":
        needed, free = view * config.cache_views, torch.cuda.mem_get_info(device)[0]
    else:  # the processes share it
        needed = view * config.cache_views * accelerator.num_processes
        free = psutil.virtual_memory().available
    if needed > free:
        raise StorageError(
            f"cache_views = {config.cache_views}: its features need {needed / 1e9:.1f} GB of "
            f"memory, but only {free / 1e9:.1f} GB are free; lower --cache-views or --image-size"
        )
