"""A checkpoint <-> a Hugging Face folder: safetensors in timm's keys, config and model card."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from huggingface_hub import EvalResult, ModelCardData
from torch import Tensor, nn

from stl10bench.core import files
from stl10bench.core.console import escape_markdown
from stl10bench.core.errors import CheckpointError
from stl10bench.models import checkpoint, registry
from stl10bench.models.checkpoint import Header
from stl10bench.models.classifier import Classifier, joined_features
from stl10bench.models.hub_files import CONFIG, HEAD, HUB, MODEL
from stl10bench.models.pretrained import contamination
from stl10bench.models.timm_backbone import create_arguments
from stl10bench.results.labels import row_label
from stl10bench.results.rows import Row
from stl10bench.results.run_folder import RunFolder

_USE = """\
The whole classifier, for uint8 RGB images (N, 3, H, W) of any size or for image files:

```python
import stl10bench

model = stl10bench.load("FOLDER")
print(model.predict("photo.jpg", top=3))
```"""
_USE_BACKBONE = """\
The backbone alone, `{}` in timm: features without the classifier, whose layers \
are in `head.safetensors`, for float images that are normalised as above:

```python
import timm

backbone = timm.create_model("local-dir:FOLDER", pretrained=True)
```"""
_NO_BACKBONE = "It has no timm backbone: timm cannot load it."
_TERMS = """\
The code is MIT-licensed. The weights are made from data that are not ours: STL-10 is provided by
its authors for research, its images were taken from ImageNet, whose terms allow non-commercial
research and education only; pretrained backbones have their own licences. Other data have terms of
their own. Choose the licence of what you publish accordingly."""
_CITATIONS = """\
- A. Coates, H. Lee, A. Y. Ng. *An Analysis of Single-Layer Networks in Unsupervised Feature
  Learning.* AISTATS 2011. (STL-10)
- R. Wightman. *PyTorch Image Models*, 2019. doi:10.5281/zenodo.4414861"""


def row_of(checkpoint_file: Path, header: Header) -> Row | None:
    """The row of the run that a checkpoint still lies beside, if it is of this very checkpoint."""
    folder = RunFolder(checkpoint_file.parent)
    if checkpoint_file.is_dir() or not folder.is_finished:
        return None
    row = folder.row()
    same = (
        row.config == header.config
        and row.test_accuracy == header.metrics.get("test/accuracy")
        and str(row.checkpoint).endswith(f"/{checkpoint_file.name}")
    )
    return row if same else None


def model_card(header: Header, row: Row | None, repository: str | None = None) -> str:
    """The card; without a row it says what the header knows: no interval, no name of the data.

    Its lines of code load the model from `repository` on the hub, else from a FOLDER.
    """
    backbone = timm_name(header)
    title = row_label(row) if row else header.config.model
    use, use_backbone = _USE, _USE_BACKBONE
    if repository is not None:
        use = use.replace("FOLDER", f"{HUB}{repository}")
        use_backbone = use_backbone.replace("local-dir:FOLDER", f"{HUB}{repository}")
    facts = (f"| {name} | {escape_markdown(text)} |" for name, text in _facts(header, row))
    paragraphs = [
        f"---\n{_metadata(header, row).to_yaml()}\n---",
        f"# {escape_markdown(title)}, {header.config.image_size} px",
        _notice(row),
        "\n".join(["| | |", "| --- | --- |", *facts]),
        *("## Use", use, use_backbone.format(backbone) if backbone else _NO_BACKBONE),
        *("## Terms", _TERMS, _CITATIONS),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _metadata(header: Header, row: Row | None) -> ModelCardData:
    """The card's YAML: what the Hub shows and searches; the data are called by their own name."""
    backbone = timm_name(header)
    hub_weights = header.config.weights.startswith("hub:")
    results = None
    if row is not None:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type="stl10" if row.dataset == "STL-10" else "other",
                dataset_name=row.dataset,
                dataset_split="test",
                metric_type="accuracy",
                metric_value=row.test_accuracy,
            )
        ]
    return ModelCardData(
        library_name="timm" if backbone else "stl10bench",
        pipeline_tag="image-classification",
        tags=["image-classification", "stl10bench"],
        license="other",
        license_name="see-terms-below",
        base_model=header.config.weights.removeprefix("hub:") if hub_weights else None,
        metrics=["accuracy"],
        model_name=header.config.model,
        eval_results=results,
    )


def _notice(row: Row | None) -> str:
    if row is None:
        return (
            "**The data are not known**: the card was made from the checkpoint alone, without its "
            "run's row. Do not take its figures for STL-10 results."
        )
    if row.dataset == "STL-10":
        return "Trained and tested on STL-10."
    if row.dataset == "demo":
        return "**A demo**: trained and tested on images drawn by code. **Not an STL-10 result.**"
    return (
        f"Trained and tested on other data in STL-10's layout ({escape_markdown(row.dataset)}). "
        "**Not an STL-10 result.**"
    )


def _facts(header: Header, row: Row | None) -> list[tuple[str, str]]:
    config, metrics = header.config, header.metrics
    seen = contamination(config.weights, header.seen)
    rule = f"resized to {config.image_size} px, bilinear with antialiasing"
    if config.input == "crop":
        rule = f"resized to {config.data_size} px, then the central {config.image_size} px"
    facts = [
        ("classes", ", ".join(header.class_names)),
        ("input", f"uint8 RGB, {rule}; mean {_list(header.mean)}, std {_list(header.std)} of 0..1"),
        ("data", f"{row.dataset if row else 'not known'}, fingerprint {config.data or 'none'}"),
    ]
    if row:
        low, high = row.test_accuracy_interval or (0.0, 1.0)
        images = f"{row.test_images} images, precision {row.precision}"
        accuracy = f"{row.test_accuracy:.4f} [{low:.4f}, {high:.4f}], {images}"
        facts += [
            ("test accuracy [95 %, Wilson]", accuracy),
            ("test loss", str(row.test_loss)),
            ("chosen by", str(row.selection)),
            ("parameters, trainable", f"{row.parameters}, {row.trainable_parameters}"),
            ("MACs per image", str(row.macs)),
            ("trained in", f"{row.train_seconds or 0:.0f} s, {row.device}, {row.cpu}"),
            ("versions", json.dumps(row.libraries)),
        ]
    else:
        facts += [(name, str(metrics[name])) for name in sorted(metrics) if "test/" in name]
    return [
        *facts,
        ("seed, epoch", f"{config.seed}, {header.epoch} of {config.epochs}")
        if config.takes_steps
        else ("seed, method", f"{config.seed}, {config.method}"),
        ("starts from", config.weights),
        *([] if seen == "none" else [("contamination", seen)]),
        ("settings", json.dumps(config.changed())),
        ("made by", f"stl10bench {header.version}"),
    ]


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


CARD = "README.md"
FILES = {MODEL, HEAD, CONFIG, CARD}
_BACKBONE = "backbone."  # the prefix of its tensors in a checkpoint


def read_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint file or of a hub folder, unchecked."""
    if not path.is_dir():
        return checkpoint.read_tensors(path)
    if not (path / MODEL).is_file():
        raise CheckpointError(
            f"{path} is a folder without {MODEL}: pass a run's best.safetensors, or a folder from "
            "'stl10bench export --to hub'"
        )
    tensors, metadata = checkpoint.read_tensors(path / MODEL)
    if (path / HEAD).is_file():
        tensors = {f"{_BACKBONE}{key}": value for key, value in tensors.items()}
        tensors |= checkpoint.read_tensors(path / HEAD)[0]
    return tensors, metadata


def load_folder(path: Path) -> tuple[dict[str, Tensor], Header]:
    """Tensors and header of a hub folder; raises CheckpointError as `checkpoint.load` does."""
    tensors, metadata = read_folder(path)
    return tensors, checkpoint.verified(tensors, metadata, path)


def timm_name(header: Header) -> str | None:
    """timm's name of the backbone; None where timm cannot build it: no backbone, another stem."""
    if header.config.model_options.get("stem_stride", 2) != 2:
        return None
    return registry.backbone_name(header.config.model)


def write_folder(source: Path, header: Header, folder: Path, repository: str | None = None) -> None:
    """Write the checkpoint `source`, with `header`, as a hub folder with a model card.

    It is for `repository` on the hub, if one is named.
    """
    tensors, metadata = read_folder(source)
    name = timm_name(header)
    if name is None:
        config: dict[str, Any] = {"architecture": header.config.model}
    else:
        config = _timm_config(name, header)
        head = {key: value for key, value in tensors.items() if not key.startswith(_BACKBONE)}
        files.write(folder / HEAD, safetensors.torch.save(head))
        keys = tensors.keys() - head.keys()
        tensors = {key.removeprefix(_BACKBONE): tensors[key] for key in sorted(keys)}
    files.write(folder / MODEL, safetensors.torch.save(tensors, metadata))
    config["label_names"] = list(header.class_names)  # timm's word
    files.write_json(folder / CONFIG, config | export_metadata(header))
    card = model_card(header, row_of(source, header), repository)
    files.write(folder / CARD, card.encode())


@torch.no_grad()
def check_backbone(folder: Path, model: nn.Module) -> None:
    """Raise CheckpointError unless timm loads from `folder` the very backbone of `model`."""
    if not isinstance(model, Classifier) or not (folder / HEAD).is_file():
        return
    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    size = json.loads((folder / CONFIG).read_text())["image_size"]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    if not torch.equal(
        joined_features(backbone, images, model.intermediates), model.features(images)
    ):
        raise CheckpointError(
            "timm loads a different backbone from the exported folder: nothing was written"
        )


def _timm_config(name: str, header: Header) -> dict[str, Any]:
    """What timm needs to build the backbone and load its weights: features, no classifier."""
    settings = timm.get_pretrained_cfg(name)
    assert settings is not None
    size = header.config.image_size
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": _num_features(name, size),
        "model_args": create_arguments(name, size),
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": settings.fixed_input_size,
            "mean": list(header.mean),
            "std": list(header.std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "num_classes": 0,
            "first_conv": settings.first_conv,
            "classifier": settings.classifier,
        },
    }


def _num_features(name: str, image_size: int) -> int:
    """The number of features of a timm backbone without its classifier."""
    with torch.device("meta"):  # no memory taken
        backbone: Any = timm.create_model(name, **create_arguments(name, image_size))
    return int(getattr(backbone, "head_hidden_size", backbone.num_features))


def export_metadata(header: Header) -> dict[str, Any]:
    """JSON values; `class_names` are in the order of the logits, `mean` and `std` of 0..1.

    The model itself resizes, crops and normalises: they tell what it does.
    """
    return {
        **header.model_dump(mode="json", include={"class_names", "mean", "std"}),
        **header.config.model_dump(include={"image_size", "input"}),
        "stl10bench": header.model_dump(mode="json"),
    }
