"""A checkpoint's header and its run's row -> a model card, Markdown for the hub."""

import json
from pathlib import Path

from stl10bench.checkpoint import Header
from stl10bench.escaping import markdown
from stl10bench.models import registry
from stl10bench.tables import results, rows
from stl10bench.tables.rows import Row

_TERMS = """\
The code is MIT-licensed. The weights are made from data that are not ours: STL-10 is provided by
its authors for research, its images were taken from ImageNet, whose terms allow non-commercial
research and education only; pretrained backbones have their own licences. Other data have terms of
their own. Choose the licence of what you publish accordingly."""
_CITATIONS = """\
- A. Coates, H. Lee, A. Y. Ng. *An Analysis of Single-Layer Networks in Unsupervised Feature
  Learning.* AISTATS 2011. (STL-10)
- R. Wightman. *PyTorch Image Models*, 2019. doi:10.5281/zenodo.4414861"""


def row_of(checkpoint: Path, header: Header) -> Row | None:
    """The row of the run that `checkpoint` still lies beside, if it is of this very checkpoint."""
    path = checkpoint.parent / "result.json"
    if checkpoint.is_dir() or not path.is_file():
        return None
    row = rows.read(path)
    same = (
        row["config"] == header.config.model_dump(mode="json")
        and row["test_accuracy"] == header.metrics.get("test/accuracy")
        and str(row.get("checkpoint")).endswith(f"/{checkpoint.name}")
    )
    return row if same else None


def card(header: Header, row: Row | None) -> str:
    """The card; without a row it says what the header knows: no interval, no name of the data."""
    backbone = registry.backbone(header.config.model)
    title = results.label(row) if row else header.config.model
    lines = [
        "---",
        f"library_name: {'timm' if backbone else 'stl10bench'}",
        "pipeline_tag: image-classification",
        f"tags: {json.dumps(['image-classification', 'stl10bench'])}",
        "license: other",
        "license_name: see-terms-below",
        "---",
        "",
        f"# {markdown(title)}, {header.config.image_size} px",
        "",
        _notice(row),
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {markdown(text)} |" for name, text in _facts(header, row)),
        "",
        "## Use",
        "",
        *_use(backbone),
        "",
        "## Terms",
        "",
        *_TERMS.splitlines(),
        "",
        *_CITATIONS.splitlines(),
        "",
    ]
    return "\n".join(lines)


def _notice(row: Row | None) -> str:
    if row is None:
        return (
            "**The data are not known**: the card was made from the checkpoint alone, without its "
            "run's row. Do not take its figures for STL-10 results."
        )
    if row["dataset"] == "STL-10":
        return "Trained and tested on STL-10."
    if row["dataset"] == "demo":
        return "**A demo**: trained and tested on images drawn by code. **Not an STL-10 result.**"
    return (
        f"Trained and tested on other data in STL-10's layout ({markdown(row['dataset'])}). "
        "**Not an STL-10 result.**"
    )


def _facts(header: Header, row: Row | None) -> list[tuple[str, str]]:
    config, metrics = header.config, header.metrics
    rule = f"resized to {config.image_size} px, bilinear with antialiasing"
    if config.input == "crop":
        rule = f"resized to 96 px, then the central {config.image_size} px"
    facts = [
        ("classes", ", ".join(header.class_names)),
        ("input", f"uint8 RGB, {rule}; mean {_list(header.mean)}, std {_list(header.std)} of 0..1"),
        ("data", f"{row['dataset'] if row else 'not known'}, fingerprint {config.data or 'none'}"),
    ]
    if row:
        low, high = row["test_accuracy_interval"]
        accuracy = f"{row['test_accuracy']:.4f} [{low:.4f}, {high:.4f}]"
        facts += [
            (
                "test accuracy [95 %, Wilson]",
                f"{accuracy}, {row['test_images']} images, precision {row['precision']}",
            ),
            ("test loss", str(row["test_loss"])),
            ("chosen by", str(row.get("selection"))),
            ("parameters, trainable", f"{row['parameters']}, {row['trainable_parameters']}"),
            ("MACs an image", str(row["macs"])),
            ("trained in", f"{row['train_seconds']:.0f} s, {row.get('device')}, {row.get('cpu')}"),
            ("versions", json.dumps(row.get("libraries"))),
        ]
    else:
        facts += [(name, str(metrics[name])) for name in sorted(metrics) if "test/" in name]
    return [
        *facts,
        ("seed, epoch", f"{config.seed}, {header.epoch} of {config.epochs}"),
        ("starts from", config.weights),
        ("settings", json.dumps(config.changed())),
        ("made by", f"stl10bench {header.version}"),
    ]


def _use(backbone: str | None) -> list[str]:
    lines = [
        "The whole classifier, for uint8 RGB images (N, 3, H, W) of any size or for image files:",
        "",
        "```python",
        "import stl10bench",
        "",
        'model = stl10bench.load("FOLDER")',
        'print(model.predict("photo.jpg", top=3))',
        "```",
        "",
    ]
    if backbone is None:
        return [*lines, "It has no timm backbone: timm cannot load it."]
    return [
        *lines,
        f"The backbone alone, `{backbone}` in timm: features without the classifier, whose layers "
        "are in `head.safetensors`, for float images that are normalised as above:",
        "",
        "```python",
        "import timm",
        "",
        'backbone = timm.create_model("local-dir:FOLDER", pretrained=True)',
        "```",
    ]


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
