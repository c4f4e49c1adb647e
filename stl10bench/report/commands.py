"""Stored studies and rows -> the commands that train their runs again."""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from stl10bench.config import DERIVED, RECIPES, RunConfig, make_config
from stl10bench.models import registry
from stl10bench.models.factory import check_options
from stl10bench.results.rows import Row
from stl10bench.studies import parse
from stl10bench.studies.study import Study
from stl10bench.training.resolve import base_settings, is_frozen

# A document says nowhere where files lie on the machine that made it: these words stand for them.
_DATA, _WEIGHTS, _RUNS = "DATA", "WEIGHTS", "RUNS"
_CHECKSUM = "sha256:"
_LINE = 86  # characters
_OF_REPEATS = {"seed", "fold", "k_fold", "k_fold_part"}


class Commands(NamedTuple):
    """What the commands of a document have in common: the images, and the pretrained weights."""

    dataset: str | None  # as the studies name it; None: no study has run
    weights: str  # of the backbones, as in a config
    own_folder: bool  # whether the images lie elsewhere than by default
    runs_dir: Path

    def on_data(self, *words: str) -> str:
        """A command that reads the images."""
        return _join((*words, *self._images()))

    def get_data(self) -> str | None:
        """The command that gets the images; None for those that no command gets."""
        if self.dataset == "demo":
            return _join(("data", "make-demo", *self._folder()))
        if self.dataset in (None, "STL-10"):
            return _join(("data", "download", *self._folder()))
        return None

    def preset(self, name: str) -> str:
        """The command of a study that has not run, with pretrained weights as in `missing`."""
        return self._with_weights().study(parse.preset(name))

    def study(self, study: Study) -> str:
        """The command of a study that ran."""
        return " ".join((parse.as_command(study), shlex.join(self._of(study.model)))).rstrip()

    def missing(self, model: str, *words: str) -> str:
        """A command that trains runs of `model` where this document finds them.

        With pretrained weights: a frozen backbone with random ones cannot learn.
        """
        folder: tuple[str, ...] = ()
        if self.runs_dir != Path("runs"):
            folder = "--runs-dir", _RUNS if self.runs_dir.is_absolute() else str(self.runs_dir)
        return _join((*words, *self._with_weights()._of(model), *folder))

    def runs(self, runs: Sequence[Row]) -> list[str]:
        """The commands of one setting's runs: from the recipe that asks for fewest changes."""
        config = runs[0].config
        changes = _changes(runs[0], nearest_recipe(runs[0]))
        frozen = is_frozen(config)
        words = [config.model]
        words += [] if frozen is None else ["--freeze" if frozen else "--no-freeze"]
        words += [*changes, *self._images(), *self._start(config.model, config.weights)]
        seeds = sorted({run.config.seed for run in runs})
        if config.k_fold is not None:
            words += ["--protocol", "k-fold", "--k-fold", str(config.k_fold)]
        elif len(seeds) == 1 or seeds != list(range(len(seeds))):
            return [_join(("train", *words, *_seed(seed))) for seed in seeds]
        return [_join(("benchmark", *words, "--seeds", str(len(seeds))))]

    def document(self) -> str:
        """The command of the document itself."""
        return _join(("report", "--template", "study", *self._folder()))

    def explained(self, lines: Iterable[str]) -> str:
        """What the words in capitals that the lines have stand for."""
        words = " ".join(lines).split()
        checksum = self.weights.removeprefix(_CHECKSUM)[:12]
        meanings = {
            _DATA: "the folder of the images",
            _RUNS: "the folder of the runs",
            _WEIGHTS: f"the file of the pretrained weights (SHA-256 {checksum}…)",
        }
        texts = [f"{word} is {meaning}" for word, meaning in meanings.items() if word in words]
        return f"In the commands {' and '.join(texts)}." if texts else ""

    def _with_weights(self) -> "Commands":
        return self._replace(weights="hub:") if self.weights == "none" else self

    def _of(self, model: str) -> list[str]:
        """The options of a command that trains a model."""
        return [*self._images(), *self._start(model, self.weights)]

    def _images(self) -> list[str]:
        words = ["--dataset", "demo"] if self.dataset == "demo" else []
        words += self._folder()
        official = self.dataset in (None, "STL-10", "demo")  # other files have other MD5 sums
        return words if official else [*words, "--no-verify"]

    def _folder(self) -> list[str]:
        return ["--data-dir", _DATA] if self.own_folder else []

    def _start(self, model: str, weights: str) -> list[str]:
        """What a backbone starts from."""
        if registry.backbone_name(model) is None:
            return []
        if weights.startswith(_CHECKSUM):
            return ["--weights", _WEIGHTS]
        return ["--no-pretrained"] if weights == "none" else []  # else timm downloads them


def nearest_recipe(row: Row) -> str:
    """The recipe that asks for fewest changes."""
    return min(RECIPES, key=lambda recipe: len(_changes(row, recipe)))


def _changes(row: Row, recipe: str) -> list[str]:
    """The options of a row's settings: a recipe, and what they change in it."""
    config = row.config
    base = base_settings(config.model, recipe, config.changed(), frozen=is_frozen(config))
    of_recipe = make_config({**base, "model": config.model})
    fields = [key for key in RunConfig.model_fields if key not in {*DERIVED, *_OF_REPEATS}]
    ours = {key: getattr(config, key) for key in fields} | row.model_options
    theirs = {key: getattr(of_recipe, key) for key in fields}
    theirs |= check_options(config.model, of_recipe.model_options)
    words = ["--recipe", recipe]
    for key, value in ours.items():
        if key != "freeze" and value is not None and parse.word(value) != parse.word(theirs[key]):
            words += ["--set", f"{key}={parse.word(value)}"]
    return words


def _seed(seed: int) -> list[str]:
    return ["--seed", str(seed)] if seed else []


def wrapped(command: str) -> str:
    """A command in lines that a page has room for; copied, they are one command."""
    first, *options = re.split(r" (?=--)", command)
    lines = [first]
    for option in options:
        if len(lines[-1]) + len(option) > _LINE:
            lines.append("   ")
        lines[-1] += f" {option}"
    return " \\\n".join(lines)


def _join(words: Iterable[str]) -> str:
    return shlex.join(("stl10bench", *words))
