"""The study's data, runs and models -> the document to hand in, in the order of its report."""

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from stl10bench.config import make_config, recipe_settings
from stl10bench.core.console import clean
from stl10bench.core.errors import CheckpointError
from stl10bench.data.load import data_folder
from stl10bench.data.stl10 import FOLDER, Dataset, open_dataset
from stl10bench.models import summary as layers_of
from stl10bench.models.factory import build_model
from stl10bench.plots import document as figures
from stl10bench.plots import galleries, style
from stl10bench.plots.inspection import sample_rows
from stl10bench.plots.studies import Results, heat_map, read_results
from stl10bench.report import best_settings
from stl10bench.report.document import Block, Code, GroupReport, Heading, Picture, Section, Text
from stl10bench.report.layers import block_table, layer_table, memory_table
from stl10bench.results.table import Table
from stl10bench.studies import parse, record, summary
from stl10bench.studies.ranking import Trained, rank
from stl10bench.studies.record import Record

MODELS = {
    "logistic": "Logistic regression",
    "mlp": "Fully connected network",
    "cnn": "Convolutional network",
    "mobilenetv2": "MobileNetV2",
}
_SIZE, _CLASSES, _BATCH = 64, 10, 128  # of the report
_WIDE, _STRIP = 600, 420  # CSS pixels: of a page, and of a strip of images
_MISSING = "Not run yet. This command makes it:"
_CURVES = "Each line is the mean over the seeds. Losses far above the others are cut."


class Study(NamedTuple):
    """A study that has run."""

    record: Record
    trained: Sequence[Trained]
    results: Results


@dataclasses.dataclass(frozen=True)
class Sources:
    """What the document is made from."""

    runs_dir: Path
    data_dir: Path | None  # None: the default one
    suffix: str  # of the curves' files: .svg or .png
    studies: dict[str, Study]  # those of the report that have run

    def command(self, *words: str) -> Code:
        """A command of stl10bench on these runs."""
        folder = () if self.runs_dir == Path("runs") else ("--runs-dir", str(self.runs_dir))
        return Code(shlex.join(("stl10bench", *words, *folder)))

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
    studies: dict[str, Study] = {}
    damaged: list[CheckpointError] = []
    for name in parse.REPORT:
        try:
            stored = record.read(runs_dir, name)
        except CheckpointError as error:
            damaged.append(error)
            continue
        if stored is not None:
            trained = record.trained(stored, runs_dir)
            studies[name] = Study(stored, trained, read_results(stored, trained, runs_dir))
    sources = Sources(runs_dir, data_dir, suffix, studies)
    final, unreadable = best_settings.final_table(runs_dir, _fingerprint(studies))
    sections = [_data(sources), _models(), *(_ablations(model, sources) for model in MODELS)]
    sections += [_results(sources, final), _commands(sources)]
    numbered = (
        dataclasses.replace(section, title=f"{number} {section.title}")
        for number, section in enumerate(sections, 1)
    )
    return GroupReport("", _summary(sources, final), tuple(numbered), (*damaged, *unreadable))


def _fingerprint(studies: dict[str, Study]) -> str | None:
    """The data of the studies, by the first one."""
    return next((study.record.data for study in studies.values()), None)


def _summary(sources: Sources, final: best_settings.Final) -> str:
    done = f"{len(sources.studies)} of the {len(parse.REPORT)} ablations have run"
    data = f" Data: {final.data}." if final.data else ""
    return (
        f"Five classifiers of images of ten classes, their ablations and one table. {done}.{data}"
    )


def _data(sources: Sources) -> Section:
    """The labelled samples, and each augmentation before and after."""
    first = next((study.record for study in sources.studies.values()), None)
    dataset = _open(sources, first)
    blocks: list[Block] = []
    if dataset is None:
        command = ("data", "download")
        if first is not None and first.dataset == "demo":
            command = ("data", "make-demo")
        text = f"The images are not in {data_folder(sources.data_dir)}, or are others than those "
        blocks += [Text(f"{text}of the studies. This command gets them:")]
        return Section("Data", (*blocks, Code(shlex.join(("stl10bench", *command)))))
    blocks.append(Text(f"{dataset.summary()}. All models see the images at 64x64 pixels."))
    samples = galleries.samples(dataset)
    text = "Four labelled training images of each class."
    blocks.append(Picture("samples.png", style.encode(samples, ".png"), text, _WIDE, text))
    blocks.append(Heading("Augmentation"))
    config = make_config({**recipe_settings("report", "cnn", frozen=None), "model": "cnn"})
    row = int(sample_rows(dataset.train, 1, 0)[0])
    settings = {
        "colour jitter": f"brightness, contrast and saturation within ±{config.brightness:.0%}, "
        f"hue within ±{config.hue:.0%} of the colour circle",
        "horizontal flip": f"with probability {config.flip:g}",
        "rotation": "by {:g} to {:g} degrees".format(*config.rotation),
    }
    for operation, text in settings.items():
        figure = figures.before_after(dataset.train, row, config, operation)
        caption = f"{operation.capitalize()}: {text}. Left: before; then five draws."
        name = f"{operation.replace(' ', '-')}.png"
        blocks.append(Picture(name, style.encode(figure, ".png"), caption, _STRIP, caption))
    return Section("Data", tuple(blocks))


def _open(sources: Sources, first: Record | None) -> Dataset | None:
    """The images of the studies, under the name that these gave them; None where they are not."""
    folder = data_folder(sources.data_dir)
    if first is not None and first.dataset == "demo":
        folder /= "demo"
    if not (folder / FOLDER).is_dir():
        return None
    dataset = open_dataset(folder, verify=first is None, stamp=False)
    if first is None:
        return dataset
    if dataset.fingerprint != first.data:
        return None
    return dataclasses.replace(dataset, name=first.dataset)


def _pixels(figure: Figure) -> int:
    return round(96 * figure.get_figwidth())


def _models() -> Section:
    """How the parameters are counted, the layers of the CNN, the blocks of MobileNetV2, memory."""
    built = {name: build_model(name, _CLASSES, _SIZE, {}) for name in MODELS}
    listed = {name: layers_of.layers(model, _SIZE) for name, model in built.items()}
    blocks: list[Block] = [Heading("Parameters")]
    for name, layers in listed.items():
        total, trainable = layers_of.parameters(built[name])
        parts = layers_of.formula(layers) if len(layers) < 12 else "the sums of the table below"
        if name == "mobilenetv2":  # of a backbone only the head's can be told
            head = [layer for layer in layers if layer.name.startswith("head.")]
            rest = total - sum(layer.parameters for layer in head)
            parts = f"{rest:,} of the backbone + {layers_of.formula(head)}"
        text = f"{MODELS[name]}: {parts} = {total:,}"
        if trainable != total:
            text += f"; {trainable:,} of them are trained while the backbone is frozen"
        blocks.append(Text(f"{text}."))
    memories = {
        MODELS[name]: layers_of.memory(layers, batch_size=_BATCH, image_size=_SIZE)
        for name, layers in listed.items()
    }
    title = f"Memory of a training step with a batch of {_BATCH}"
    blocks += [Heading(title), memory_table(title, memories)]
    title = f"Layers of the convolutional network at {_SIZE}x{_SIZE}"
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
            blocks += [Text(text), sources.command("study", "run", name)]
        else:
            blocks += _ablation(study, sources)
    return Section(MODELS[model], tuple(blocks))


def _ablation(study: Study, sources: Sources) -> Iterator[Block]:
    name = study.record.study.name
    yield Text(finding(study))
    if parse.as_command(study.record.study) != f"stl10bench study run {name}":
        yield Text(f"Reduced: {parse.as_command(study.record.study)}", "note")
    if not any(study.results.histories.values()):
        yield Text("No run of it has finished an epoch yet.", "note")
        return
    text = f"Loss and accuracy over the epochs: {study.record.study.factors}"
    if len(study.results.factors) == 2:
        grid = figures.overlaid_grid(study.results)
        yield sources.picture(name, grid, text, _CURVES)
        yield sources.picture(f"{name}-map", heat_map(study.results), f"Map of {text.lower()}")
    else:
        yield sources.picture(name, figures.overlaid(study.results), text, _CURVES)


def finding(study: Study) -> str:
    """A sentence on what was found here, the report's finding, and the verdict."""
    stored, trained = study.record, study.trained
    found = summary.finding(stored, trained)
    held = summary.held(stored, rank(trained))
    return f"Here: {found}. The report: {stored.study.finding}. {held}."


def _results(sources: Sources, final: best_settings.Final) -> Section:
    """What the studies found, and the best setting of each model beside the report's table."""
    lines = []
    for name in parse.REPORT:
        study, preset = sources.studies.get(name), parse.preset(name)
        here, verdict = "not run yet", ""
        if study is not None:
            places = rank(study.trained)
            here = summary.best(study.record, places)
            verdict = summary.held(study.record, places).partition(":")[0]
        lines.append((name, clean(here), preset.finding, verdict))
    header = ("study", "found here", "the report found", "verdict")
    table = Table("The nine findings", header, tuple(lines), left=header[1:])
    blocks: list[Block] = [Heading("The nine findings"), table]
    blocks += [Heading("The best setting of each model"), final.table]
    if final.missing:
        text = f"{', '.join(final.missing)}: not run yet. This command makes them:"
        blocks += [Text(text), sources.command("benchmark", "--all", "--recipe", "report")]
    return Section("Results", tuple(blocks))


def _commands(sources: Sources) -> Section:
    """The command of each part, in their order."""
    lines = ["stl10bench data download", "stl10bench visualize samples"]
    lines += ["stl10bench visualize augmentations cnn --recipe report"]
    lines += [f"stl10bench describe {model}" for model in MODELS]
    for name in parse.REPORT:
        study = sources.studies.get(name)
        lines.append(parse.as_command(study.record.study if study else parse.preset(name)))
    lines += ["stl10bench benchmark --all --recipe report", "stl10bench report --template study"]
    text = "Each command can be run again: finished runs are not repeated."
    return Section("How to run each part", (Text(text), Code("\n".join(lines))))
