"""The study's data, runs and models -> the document to hand in, in the order of its report."""

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stl10bench.config import make_config, recipe_settings
from stl10bench.core.errors import CheckpointError
from stl10bench.data.load import data_folder
from stl10bench.data.stl10 import FOLDER, Dataset, open_dataset
from stl10bench.models import summary as layers_of
from stl10bench.models.factory import build_model
from stl10bench.plots import document as figures
from stl10bench.plots import galleries, style
from stl10bench.plots.inspection import sample_rows
from stl10bench.plots.studies import heat_map, read_results
from stl10bench.plots.style import Wording
from stl10bench.report import ablation, best_settings
from stl10bench.report.ablation import Ablation
from stl10bench.report.best_settings import MODELS
from stl10bench.report.commands import Commands, nearest_recipe, wrapped
from stl10bench.report.document import Block, Code, GroupReport, Heading, Picture, Section, Text
from stl10bench.report.layers import block_table, layer_table, memory_table
from stl10bench.results.rows import Row
from stl10bench.studies import parse, record

_SIZE, _CLASSES, _BATCH = 64, 10, 128  # of the report
_WIDE, _STRIP = 660, 560  # CSS pixels; a page has 680, and room for these below each other
_MISSING = "Not run yet. This command makes it:"


@dataclasses.dataclass(frozen=True)
class Sources:
    """What the document is made from."""

    runs_dir: Path
    data_dir: Path | None  # None: the default one
    suffix: str  # of the curves' files: .svg or .png
    studies: dict[str, Ablation]  # those of the report that have run
    rows: tuple[Row, ...]  # of all runs, those of the final table first
    commands: Commands

    @property
    def shown(self) -> dict[str, Row]:
        """Of each model that ran the row whose settings the document shows."""
        return {row.model: row for row in reversed(self.rows)}

    def size(self, model: str) -> int:
        """The input size of a model, in pixels; the report's of one that has not run."""
        return self.shown[model].image_size if model in self.shown else _SIZE

    def options(self, model: str) -> dict[str, Any]:
        """A model's own options, as it ran; a backbone's parameters are told frozen and not."""
        options = self.shown[model].config.model_options if model in self.shown else {}
        return {key: value for key, value in options.items() if key != "freeze"}

    def picture(self, name: str, figure: Figure, text: str, caption: str = "") -> Picture:
        """A figure of lines."""
        content = style.encode(figure, self.suffix)
        return Picture(f"{name}{self.suffix}", content, text, _pixels(figure), caption)


@style.figure_style()
def build_study_document(runs_dir: Path, *, data_dir: Path | None, suffix: str) -> GroupReport:
    """The whole document: data, models, the ablations of each model, the final table, commands.

    Of each study that has not run, and of data that are not there, it says the command. A record
    that cannot be read is among the `damaged`. Raises what reading the data raises.
    """
    studies: dict[str, Ablation] = {}
    damaged: list[CheckpointError] = []
    for name in parse.REPORT:
        try:
            stored = record.read(runs_dir, name)
        except CheckpointError as error:
            damaged.append(error)
            continue
        if stored is not None:
            trained = record.trained(stored, runs_dir)
            studies[name] = Ablation(stored, trained, read_results(stored, trained, runs_dir))
    final, unreadable = best_settings.final_table(runs_dir, _fingerprint(studies))
    rows = [row for runs in final.runs for row in runs]
    rows += [row for study in studies.values() for row in study.rows]
    datasets = [study.record.dataset for study in studies.values()]
    datasets += [row.dataset for row in rows]
    backbones = (row.config for row in rows if row.model == "mobilenetv2")
    commands = Commands(
        dataset=datasets[0] if datasets else None,
        weights=next((config.weights for config in backbones), "hub:"),  # by the first of them
        own_folder=data_dir is not None,
        runs_dir=runs_dir,
    )
    sources = Sources(runs_dir, data_dir, suffix, studies, tuple(rows), commands)
    sections = [
        _data(sources, final.data),
        _models(sources),
        *(_ablations(model, sources) for model in MODELS),
    ]
    sections += [_results(sources, final), _commands(sources, final)]
    numbered = (
        dataclasses.replace(section, title=f"{number} {section.title}")
        for number, section in enumerate(sections, 1)
    )
    return GroupReport("", _summary(sources), tuple(numbered), (*damaged, *unreadable))


def _fingerprint(studies: dict[str, Ablation]) -> str | None:
    """The data of the studies, by the first one."""
    return next((study.record.data for study in studies.values()), None)


def _summary(sources: Sources) -> str:
    text = "Five classifiers of images of ten classes, their ablations and one table."
    done, every = len(sources.studies), len(parse.REPORT)
    have = "has" if done == 1 else "have"
    return text if done == every else f"{text} So far {done} of the {every} ablations {have} run."


def _data(sources: Sources, title: str) -> Section:
    """The labelled samples, and each augmentation before and after; `title` names the data."""
    dataset = _open(sources)
    if dataset is None:
        command = sources.commands.get_data()
        text = f"{title}. " if title else ""
        text += "The images are not at hand, or are others than those of the runs"
        if command is None:
            return Section("Data", (Text(f"{text}: pass --data-dir with their folder."),))
        return Section("Data", (Text(f"{text}. This command gets them:"), Code(command)))
    blocks: list[Block] = [Text(f"{dataset.summary()}. {_use(sources)}".strip())]
    samples = galleries.samples(dataset, wording=Wording(title=""))
    text = "Four labelled training images of each class."
    blocks.append(Picture("samples.png", style.encode(samples, ".png"), text, _WIDE, text))
    text = "Left: the image as it is. Then: five draws, by the functions that training calls, with "
    if ran := sources.shown.get("cnn"):
        config, whose = ran.config, "the settings of the CNN here."
    else:
        config = make_config({**recipe_settings("report", "cnn", frozen=None), "model": "cnn"})
        whose = "the CNN's settings in the recipe 'report'."
    blocks += [Heading("Augmentation"), Text(text + whose)]
    row = int(sample_rows(dataset.train, 1, 0)[0])
    colours = ("brightness", "contrast", "saturation", "hue")
    settings = {
        "colour jitter": ", ".join(f"{key} ±{getattr(config, key):.0%}" for key in colours)
        + " of the colour circle",
        "horizontal flip": f"with probability {config.flip:g}",
        "rotation": "by {:g} to {:g} degrees".format(*config.rotation),
    }
    for operation, text in settings.items():
        figure = figures.before_after(dataset.train, row, config, operation)
        caption = f"{operation.capitalize()}: {text}."
        name = f"{operation.replace(' ', '-')}.png"
        blocks.append(Picture(name, style.encode(figure, ".png"), caption, _STRIP, caption))
    return Section("Data", tuple(blocks))


def _use(sources: Sources) -> str:
    """What the models see of the images, and which of these choose; empty before the first run."""
    rows = [row for study in sources.studies.values() for row in study.rows]
    if not rows:
        return ""
    ways = {"resize": "resized", "crop": "cropped"}
    seen = {f"{ways[row.config.input]} to {row.image_size}x{row.image_size} pixels" for row in rows}
    text = f"The models see them {' or '.join(sorted(seen))}."
    held_out = {run.val_images for study in sources.studies.values() for run in study.trained}
    if len(held_out) == 1:
        text += (
            f" {held_out.pop():,} of the training images are held out for validation; they choose "
            "the epoch and the setting."
        )
    return text


def _open(sources: Sources) -> Dataset | None:
    """The images of the studies, under the name that these gave them; None where they are not."""
    folder = data_folder(sources.data_dir)
    if sources.commands.dataset == "demo":
        folder /= "demo"
    if not (folder / FOLDER).is_dir():
        return None
    first = next((study.record for study in sources.studies.values()), None)
    dataset = open_dataset(folder, verify=first is None, stamp=False)
    if first is None:
        return dataset
    if dataset.fingerprint != first.data:
        return None
    return dataclasses.replace(dataset, name=first.dataset)


def _pixels(figure: Figure) -> int:
    return round(96 * figure.get_figwidth())


def _models(sources: Sources) -> Section:
    """How the parameters are counted, the layers of the CNN, the blocks of MobileNetV2, memory.

    Of each model as it ran, by the best setting of the final table.
    """
    sizes = {name: sources.size(name) for name in MODELS}
    built = {
        name: build_model(name, _CLASSES, sizes[name], sources.options(name)) for name in MODELS
    }
    listed = {name: layers_of.layers(model, sizes[name]) for name, model in built.items()}
    text = "Each model is shown as in the final table; one that has not run, with its defaults."
    blocks: list[Block] = [Heading("Parameters"), Text(text, "note")]
    for name, layers in listed.items():
        total, trainable = layers_of.parameters(built[name])
        parts = layers_of.formula(layers) or "the sum of its layers"
        if name == "cnn":
            parts = "the sum of the table below"
        if name == "mobilenetv2":  # of a backbone only the head's can be told
            head = [layer for layer in layers if layer.name.startswith("head.")]
            rest = total - sum(layer.parameters for layer in head)
            parts = f"{rest:,} of the backbone + {layers_of.formula(head)}"
        text = f"{MODELS[name]}: {parts} = {total:,}"
        if trainable != total:
            text += f"; {trainable:,} of them are trained while the backbone is frozen"
        blocks.append(Text(f"{text}."))
    memories = {
        MODELS[name]: layers_of.memory(layers, batch_size=_BATCH, image_size=sizes[name])
        for name, layers in listed.items()
    }
    title = f"Memory of a training step with a batch of {_BATCH}"
    blocks += [Heading(title), memory_table(title, memories)]
    title = f"Layers of the convolutional network at {sizes['cnn']}x{sizes['cnn']}"
    blocks += [Heading(title), layer_table(title, listed["cnn"])]
    title = "Blocks of MobileNetV2 and its head"
    blocks += [Heading(title), block_table(title, listed["mobilenetv2"])]
    return Section("Models", tuple(blocks))


def _ablations(model: str, sources: Sources) -> Section:
    """The studies of a model: what was found, curves with all settings, a map of two factors."""
    blocks: list[Block] = []
    for name in parse.REPORT:
        preset = parse.preset(name)
        if preset.model != model:
            continue
        about = (preset.about.partition(": ")[2] or preset.about).rstrip(".")
        blocks.append(Heading(about[0].upper() + about[1:]))
        study = sources.studies.get(name)
        if study is None:
            text = f"The report found: {preset.finding}. {_MISSING}"
            blocks += [Text(text), Code(sources.commands.missing(model, "study", "run", name))]
        else:
            blocks += _ablation(study, sources)
    return Section(MODELS[model], tuple(blocks))


def _ablation(study: Ablation, sources: Sources) -> Iterator[Block]:
    name, results = study.study.name, study.results
    yield Text(ablation.finding(study))
    if shared := ablation.conditions(study):
        yield Text(shared, "note")
    if not any(results.histories.values()):
        yield Text("No run of it has finished an epoch yet.", "note")
        return
    text = f"Loss and accuracy over the epochs: {study.study.factors}"
    caption = figures.caption(results)
    if len(results.factors) == 2:
        yield sources.picture(name, figures.overlaid_grid(results), text, caption)
        cells = heat_map(results, Wording(title=""))
        yield sources.picture(f"{name}-map", cells, f"Map of {text.lower()}")
    else:
        yield sources.picture(name, figures.overlaid(results), text, caption)


def _results(sources: Sources, final: best_settings.Final) -> Section:
    """What the studies found, and the best setting of each model beside the report's table."""
    blocks: list[Block] = [Heading("The nine findings")]
    blocks.append(ablation.findings_table(sources.studies))
    blocks += [Heading("The best setting of each model"), final.table]
    if final.missing:
        text = f"{', '.join(final.missing)}: not run yet. This command makes them:"
        blocks += [Text(text), Code(_benchmark(sources))]
    return Section("Results", tuple(blocks))


def _benchmark(sources: Sources) -> str:
    recipe = nearest_recipe(sources.rows[0]) if sources.rows else "report"
    return sources.commands.missing("mobilenetv2", "benchmark", "--all", "--recipe", recipe)


def _commands(sources: Sources, final: best_settings.Final) -> Section:
    """The command of each part, in their order: those that give the runs of this document."""
    commands = sources.commands
    recipe = nearest_recipe(sources.shown["cnn"]) if "cnn" in sources.shown else "report"
    parts = {
        "Data and augmentation": [
            *filter(None, [commands.get_data()]),
            commands.on_data("visualize", "samples"),
            commands.on_data("visualize", "augmentations", "cnn", "--recipe", recipe),
        ],
        "Parameters, layers and memory": [_describe(model, sources) for model in MODELS],
        "Ablations": [
            commands.study(study.study) if study else commands.preset(name)
            for name in parse.REPORT
            for study in [sources.studies.get(name)]
        ],
        "The final table": [*_of_table(sources, final)],
        "This document": [commands.document()],
    }
    lines = [line for part in parts.values() for line in part]
    text = f"{commands.explained(lines)} Finished runs are not repeated.".strip()
    blocks: list[Block] = [Text(text)]
    for title, part in parts.items():
        if part:
            blocks += [Heading(title), Code("\n".join(map(wrapped, part)))]
    return Section("How to run each part", tuple(blocks))


def _describe(model: str, sources: Sources) -> str:
    words = ["stl10bench", "describe", model]
    if (size := sources.size(model)) != _SIZE:
        words += ["--image-size", str(size)]
    for key, value in sources.options(model).items():
        words += ["--model-option", f"{key}={parse.word(value)}"]
    return shlex.join(words)


def _of_table(sources: Sources, final: best_settings.Final) -> Iterator[str]:
    """The commands of the table's settings that no study ran."""
    studied = {entry.run for study in sources.studies.values() for entry in study.record.runs}
    for runs in final.runs:
        if not studied.issuperset(row.run for row in runs):
            yield from sources.commands.runs(runs)
    if final.missing:
        yield _benchmark(sources)
