"""The epoch that counts -> its test, its checkpoint, its predictions and its row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from stl10bench import checkpoint, cost, files, metrics
from stl10bench.batches import Images, Normalise
from stl10bench.evaluation import evaluate, tested_row
from stl10bench.state import Best
from stl10bench.tracking import Log


def finish(
    best: Best,
    model: nn.Module,
    normalise: Normalise,
    test: Images,
    val: Images,
    accelerator: Accelerator,
    *,
    dataset: str,
    folder: Path,
    log: Log,
    step: int,
    check: Callable[[], None] = lambda: None,
    costs: dict[str, float] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Test the epoch that counts; writes its checkpoint, predictions and row, returns the row.

    `step` is the run's last; `check` is called now and then and may raise; `facts` are what else
    the row says. `costs` are `cost.measure`'s of a model of the same layers, where they are known.
    The model keeps the weights that it came with.
    """
    config, main = best.header.config, accelerator.is_main_process
    with loaded(model, best.weights):
        logits, val_logits = (
            evaluate(*(model, part.images, normalise, config.image_size, accelerator), check=check)
            if len(part.labels)
            else None
            for part in (test, val)
        )
        assert logits is not None  # there are test images
        tested = metrics.finite(metrics.score(logits, test.labels, "test"))
        log.write(tested, step=step)
        header = best.header.at(best.header.epoch, best.header.step, best.header.metrics | tested)
        file = folder / ("best.safetensors" if config.val_fraction else "last.safetensors")
        if main:
            checkpoint.save(file, model, header)
        row = {
            "run": folder.name,
            **tested_row(header, model, dataset, len(test.labels), accelerator),
            **metrics.measures(logits, test.labels, val_logits, val.labels),
            "selection": "hold-out" if config.val_fraction else "last epoch",
            **facts,
            "checkpoint": f"{folder.name}/{file.name}",
        }
        if main:
            row |= costs or cost.measure(model, test, normalise, config.image_size, accelerator)
            row["checkpoint_mb"] = file.stat().st_size / 1e6
            log.summary(row)
            checkpoint.save_predictions(
                folder / "predictions.safetensors", logits, test.labels, val_logits, val.labels
            )
            files.write_json(folder / "result.json", row)
    return row


@contextmanager
def loaded(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Within, the model has other weights."""
    own = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
