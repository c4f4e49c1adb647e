"""A study or a list of models, options, data -> the runs to be: a job each, or why not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from rich.console import Console

from stl10bench.config import DERIVED, Limits, RunConfig, make_limits
from stl10bench.core.errors import BenchError, UsageError, unknown
from stl10bench.core.launcher import check_environment
from stl10bench.data.load import open_data
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.models import registry
from stl10bench.models.factory import check_options, model_options
from stl10bench.models.pretrained import Weights, find_weights, is_checkpoint
from stl10bench.results.rows import Failure
from stl10bench.studies.study import (
    MOST_RUNS,
    Factor,
    Point,
    Range,
    Settings,
    Study,
    label,
    levels,
    named,
    point,
)
from stl10bench.training.job import OPTIONS, Job, make_job
from stl10bench.training.resolve import check_settings, resolve_config

REPORT_MODELS = ("logistic", "mlp", "cnn", "mobilenetv2")  # five rows: the last counts twice
PROTOCOLS = ("full", "folds")
FOLDS = 10

_ALL = 64  # runs, up to which all of them are checked beforehand
_TORCH_OPTIMIZERS = ("sgd", "adam", "adamw")  # others are asked of timm, which takes seconds


class Start(NamedTuple):
    """What the backbones of a study start from: `train`'s options."""

    weights: Path | None = None
    pretrained: bool = True
    of_ours: bool = False  # whether they are a checkpoint of a run

    def keywords(self, model: str) -> dict[str, Any]:
        """Those that `train` takes for a model; weights of a backbone are not for the others."""
        if registry.backbone_name(model) is None and not self.of_ours:
            return {}
        return {"weights": self.weights, "pretrained": self.pretrained}


def make_start(weights: Path | None, pretrained: bool, runs_dir: Path) -> Start:
    """What --weights and --pretrained mean; raises what `find_weights` raises."""
    if weights is None:
        return Start(None, pretrained)
    file = find_weights(weights, runs_dir)
    return Start(file, pretrained, is_checkpoint(file))


@dataclass(frozen=True)
class Common:
    """What all runs of a study or a benchmark share: data, weights, and the rest of their jobs."""

    data: Dataset
    start: Start
    options: Mapping[str, Any]  # fields of Job; paths are absolute: a worker has its own folder

    @property
    def runs_dir(self) -> Path:
        return Path(self.options["runs_dir"])

    @property
    def device(self) -> str:
        return str(self.options["device"])


class Planned(NamedTuple):
    """A run to be. `failure` says why there is no `job`; a benchmark's has no labels."""

    title: str  # on one line
    labels: tuple[str, ...]  # the value of each factor
    seed: int
    val_images: int
    job: Job | None
    failure: Failure | None = None

    @property
    def run(self) -> str | None:
        """The run's name."""
        return None if self.job is None else self.job.config.name


def prepare(
    start: Start, options: Mapping[str, Any], console: Console, *, dry: bool = False
) -> Common:
    """Open the data; `options` are those of `train`, unset ones None. Raises what it raises.

    With `dry` nothing is written.
    """
    from stl10bench.core.device import choose_device

    check_environment()  # the runs' own has nothing of a launcher: they would not see it
    set_ones = {key: value for key, value in options.items() if value is not None}
    chosen = {key: value for key, value in set_ones.items() if key in OPTIONS}
    for key in ("runs_dir", "data_dir"):
        if key in chosen:
            chosen[key] = Path(chosen[key]).absolute()
    data = open_data(
        chosen["dataset"],
        chosen.get("data_dir"),
        download=chosen["download"],
        verify=chosen["verify"],
        console=console,
        dry=dry,
    )
    chosen["device"] = choose_device(chosen["device"])
    limits = {key: value for key, value in set_ones.items() if key in Limits.model_fields}
    return Common(data, start, {**chosen, "limits": make_limits(limits)})


def plan_job(model: str, settings: Mapping[str, Any], recipe: str, common: Common) -> Job:
    """The job of a model with some settings; raises what `train` raises for them."""
    config, start = check_settings(
        model, recipe=recipe, settings=settings, **common.start.keywords(model)
    )
    config = resolve_config(config, common.data, start, common.device)
    file = None if start.file is None else start.file.absolute()
    return make_job(config, weights=file, **common.options)


# Studies


def plan_study(study: Study, points: Sequence[Point], common: Common) -> list[Planned]:
    """The run of each point; one that cannot be says why."""
    val_images: dict[tuple[Any, ...], int] = {}  # splitting takes longer than all the rest
    planned = []
    for place in points:
        title = f"{named(study.vary, place.labels)} seed {place.seed}"
        try:
            job = _job(study, place, common)
            config = job.config
            split = (config.seed, config.val_fraction, config.labels_per_class)
            if split not in val_images:
                val_images[split] = len(training_rows(config, common.data)[1])
            planned.append(Planned(title, place.labels, place.seed, val_images[split], job))
        except BenchError as error:
            failure = Failure(model=place.model, error=str(error))
            planned.append(Planned(title, place.labels, place.seed, 0, None, failure))
    return planned


def base_run(study: Study, common: Common) -> str | None:
    """The name of the run of the first seed with nothing varied; None where there is none."""
    try:
        place = Point((), study.model, study.settings, study.seeds[0])
        return _job(study, place, common).config.name
    except BenchError:
        return None


def weight_sources(study: Study, start: Start) -> list[str]:
    """What the backbones of a study's runs start from, as their configs have it."""
    return sorted({_choose(study, corner, start)[1].source for corner in _corners(study)})


def longest(study: Study, start: Start) -> int:
    """The epochs of the study's longest run."""
    return max(_choose(study, corner, start)[0].epochs for corner in _corners(study))


def check(study: Study, start: Start) -> None:
    """Raise UsageError for what can be known to be wrong before the first run.

    Unknown models, factors and values (with the nearest name), settings that are both fixed and
    varied or varied twice, values out of their range, too many runs, and a study without
    validation images. Of a large study each value is tried once, not with all others.
    """
    varied = set(study.vary)
    for factor in study.vary.values():
        if isinstance(factor, dict):
            varied.update(*factor.values())
    if both := sorted(varied & study.settings.keys()):
        raise UsageError(
            f"{both[0]} is both set and varied by study {study.name}: leave it out of one, or give "
            f"other values with --vary {both[0]}=A,B"
        )
    if "seed" in varied | study.settings.keys():
        raise UsageError("seed cannot be set or varied: a study has --seeds")
    if "fold" in varied | study.settings.keys():
        raise UsageError(
            "fold cannot be set or varied: a fold is trained on whole, and a study compares on "
            "validation images ('benchmark --protocol folds' trains all ten)"
        )
    for key in sorted(varied):
        by = [name for name, factor in study.vary.items() if key in _keys(name, factor)]
        if len(by) > 1:
            raise UsageError(f"{key} is varied by {by[0]} and by {by[1]}: leave it out of one")
    ends = [_ends(name, factor) for name, factor in study.vary.items()]
    if (count := len(study.seeds) * prod(map(len, ends))) > MOST_RUNS:
        raise UsageError(f"study {study.name}: {count:,} runs, {MOST_RUNS:,} are the limit")
    for name, factor in study.vary.items():
        if isinstance(factor, Range):
            is_whole(study, name)
    for corner in _corners(study):
        _check_point(study, corner, start)


def is_whole(study: Study, name: str) -> bool:
    """Whether a setting that has a range takes whole numbers only, by its type.

    Raises UsageError for one that takes no numbers.
    """
    if name in RunConfig.model_fields:
        kinds: list[Any] = [RunConfig.model_fields[name].annotation]
    else:
        options = [model_options(m) for m in sorted({corner.model for corner in _corners(study)})]
        kinds = [option[name].annotation for option in options if name in option]
    numbers = [_number(kind) for kind in kinds]
    if None in numbers:
        raise UsageError(
            f"{name} cannot have a range: it is no number; list its values (--vary {name}=A,B)"
        )
    return bool(numbers) and float not in numbers


def _number(kind: Any) -> type | None:
    """int or float, whichever a type's values are; None for a type of others."""
    if get_origin(kind) is Annotated:
        return _number(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        kinds = {_number(part) for part in get_args(kind) if part is not NoneType}
        return None if None in kinds else float if float in kinds else int
    return next((number for number in (int, float) if kind in (number, number.__name__)), None)


def _keys(name: str, factor: Factor) -> set[str]:
    """The settings that a factor decides."""
    if isinstance(factor, dict):
        return {key for settings in factor.values() for key in settings}
    return {name}


def _corners(study: Study) -> list[Point]:
    """The points of a study with its first seed, of a range both ends.

    Of a large one each value of each factor once, beside the first ones of the others.
    """
    grid = [_ends(name, factor) for name, factor in study.vary.items()]
    if prod(map(len, grid)) <= _ALL:
        return [point(study, chosen, study.seeds[0]) for chosen in product(*grid)]
    first = [values[0] for values in grid]
    return [
        point(study, [*first[:at], value, *first[at + 1 :]], study.seeds[0])
        for at, values in enumerate(grid)
        for value in values
    ]


def _ends(name: str, factor: Any) -> list[tuple[str, Settings]]:
    """A factor's values, or both ends of its range."""
    if isinstance(factor, Range):
        return [(label(end), {name: end}) for end in (factor.low, factor.high)]
    return levels(name, factor)


def _check_point(study: Study, corner: Point, start: Start) -> None:
    model = corner.model
    registry.check_name(model)
    options = model_options(model)
    for key in corner.settings:
        keys = [*RunConfig.model_fields.keys() - set(DERIVED), *options]
        if key not in keys:
            if having := [name for name in registry.names() if key in model_options(name)]:
                raise UsageError(f"{model} has no {key}: it is an option of {', '.join(having)}")
            raise unknown(f"{model} setting", key, keys)
    config, _ = _choose(study, corner, start)
    check_options(model, config.model_options)
    if config.val_fraction == 0:
        raise UsageError("val_fraction = 0: a study compares on validation images, it needs some")
    if config.optimizer not in _TORCH_OPTIMIZERS:
        from torch import nn

        from stl10bench.training.optim import make_optimizer

        make_optimizer(config, nn.Linear(1, 1))


def _choose(study: Study, place: Point, start: Start) -> tuple[RunConfig, Weights]:
    return check_settings(
        place.model, recipe=study.recipe, settings=place.settings, **start.keywords(place.model)
    )


def _job(study: Study, place: Point, common: Common) -> Job:
    settings = {**place.settings, "seed": place.seed}
    return plan_job(place.model, settings, study.recipe, common)


# Benchmarks


class Entry(NamedTuple):
    """A model of a benchmark, and the settings that tell it from its repeats."""

    model: str
    settings: dict[str, Any]  # freeze, seed, fold: those that are given

    @property
    def title(self) -> str:
        """The run as a command line would name it."""
        words = [self.model]
        for key, value in self.settings.items():
            flag = f"--{key} {value}" if key != "freeze" else "--freeze"
            words.append("--no-freeze" if value is False else flag)
        return " ".join(words)


def list_entries(
    models: Sequence[str],
    *,
    everything: bool,
    freeze: bool | None,
    seeds: int | None = None,
    protocol: str = "full",
) -> list[Entry]:
    """The runs of a benchmark; a backbone gives two, frozen and fine-tuned, unless `freeze` is set.

    With `seeds` = n each is repeated with the seeds 0 to n-1, in the protocol `folds` on each of
    the ten folds. The first repeat of all comes first, so that there is a whole table early.
    Raises UsageError for unknown names, and when nothing is asked for.
    """
    names = list(dict.fromkeys([*(REPORT_MODELS if everything else ()), *models]))
    if not names:
        raise UsageError("Missing model: name some, or --all for the report's five rows")
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    variants: list[Entry] = []
    for name in names:
        registry.check_name(name)
        if registry.backbone_name(name) is None:
            variants.append(Entry(name, {}))
        else:
            both = (True, False) if freeze is None else (freeze,)
            variants += [Entry(name, {"freeze": value}) for value in both]
    seed_settings = [{"seed": seed} for seed in range(seeds)] if seeds else [{}]
    folds = [{"fold": fold} for fold in range(FOLDS)] if protocol == "folds" else [{}]
    return [
        Entry(model, {**settings, **seed, **fold})
        for seed, fold, (model, settings) in product(seed_settings, folds, variants)
    ]


def fit_settings(
    entries: Sequence[Entry], settings: Mapping[str, Any]
) -> Iterator[tuple[Entry, dict[str, Any]]]:
    """Each entry with `settings` and its own; a model's options only where the model has them.

    Raises UsageError for an option that none of the models has, and for a seed or a fold that is
    given twice.
    """
    for key, option in {"seed": "--seeds", "fold": "--protocol folds"}.items():
        if key in settings and key in entries[0].settings:
            raise UsageError(f"--{key} {settings[key]} and {option} contradict: give one")
    options = {entry.model: model_options(entry.model) for entry in entries}
    for key in settings.keys() - RunConfig.model_fields.keys():
        if not any(key in names for names in options.values()):
            raise UsageError(f"model option {key}={settings[key]}: none of the models has it")
    for entry in entries:
        keys = RunConfig.model_fields.keys() | options[entry.model].keys()
        fitting = {key: value for key, value in settings.items() if key in keys}
        yield entry, {**fitting, **entry.settings}


def plan_benchmark(
    entries: Sequence[Entry], settings: Mapping[str, Any], recipe: str, common: Common
) -> list[Planned]:
    """The run of each entry; one that cannot be says why. Raises what `fit_settings` raises."""
    planned = []
    for entry, fitted in fit_settings(entries, settings):
        seed = int(fitted.get("seed", 0))
        try:
            job = plan_job(entry.model, fitted, recipe, common)
            planned.append(Planned(entry.title, (), seed, 0, job))
        except BenchError as error:
            failure = Failure(model=entry.model, error=str(error))
            planned.append(Planned(entry.title, (), seed, 0, None, failure))
    return planned
