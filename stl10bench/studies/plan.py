"""A study, options and data -> the runs to be: each with its config, or why it cannot be."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from stl10bench.config import DERIVED, RunConfig
from stl10bench.core.errors import BenchError, UsageError, unknown
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.models import registry
from stl10bench.models.factory import check_options, model_options
from stl10bench.models.pretrained import Weights
from stl10bench.studies.jobs import Trial, resolve_trial
from stl10bench.studies.study import (
    MOST_RUNS,
    Factor,
    Point,
    Range,
    Settings,
    Study,
    Value,
    label,
    levels,
    named,
    point,
)
from stl10bench.training.resolve import check_settings

_ALL = 64  # runs, up to which all of them are checked beforehand
_TORCH_OPTIMIZERS = ("sgd", "adam", "adamw")  # others are asked of timm, which takes seconds


class Planned(NamedTuple):
    """A run of a study. `config` is None, and `reason` says why, for one that cannot be."""

    title: str  # the values and the seed, on one line
    point: Point
    trial: Trial
    config: RunConfig | None
    reason: str
    val_images: int


class Start(NamedTuple):
    """What the backbones of a study start from: `train`'s options."""

    weights: Path | None = None
    pretrained: bool = True

    def keywords(self, model: str) -> dict[str, Any]:
        """Those that `train` takes for a model."""
        if registry.backbone_name(model) is None:
            return {}
        return {"weights": self.weights, "pretrained": self.pretrained}

    def arguments(self, model: str) -> list[str]:
        """The same, for a command line."""
        if registry.backbone_name(model) is None:
            return []
        given = [] if self.weights is None else ["--weights", str(self.weights)]
        return given if self.pretrained else [*given, "--no-pretrained"]


def check(study: Study, start: Start) -> None:
    """Raise UsageError for what can be known to be wrong before the first run.

    Unknown models, factors and values (with the nearest name), settings that are both fixed and
    varied or varied twice, values out of their range, too many runs, and a study without a
    hold-out. Of a large study each value is tried once, not with all others.
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
            "fold cannot be set or varied: a fold is trained on whole, and a study compares on the "
            "hold-out ('benchmark --protocol folds' trains all ten)"
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
    for one in _corners(study):
        _check_point(study, one, start)


def is_whole(study: Study, name: str) -> bool:
    """Whether a setting that has a range takes whole numbers only, by its type.

    Raises UsageError for one that takes no numbers.
    """
    if name in RunConfig.model_fields:
        kinds: list[Any] = [RunConfig.model_fields[name].annotation]
    else:
        models = {one.model for one in _corners(study)}
        known = [model_options(model) for model in sorted(models)]
        kinds = [own[name].annotation for own in known if name in own]
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
        kinds = {_number(one) for one in get_args(kind) if one is not NoneType}
        return None if None in kinds else float if float in kinds else int
    return next((one for one in (int, float) if kind in (one, one.__name__)), None)


def weights(study: Study, start: Start) -> list[str]:
    """What the backbones of a study's runs start from, as their configs have it."""
    return sorted({_choose(study, one, start)[1].source for one in _corners(study)})


def _keys(name: str, factor: Factor) -> set[str]:
    """The settings that a factor decides."""
    return {key for own in factor.values() for key in own} if isinstance(factor, dict) else {name}


def longest(study: Study, start: Start) -> int:
    """The epochs of the study's longest run."""
    return max(_checked(study, one, start).epochs for one in _corners(study))


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


def _check_point(study: Study, one: Point, start: Start) -> None:
    registry.check_name(one.model)
    options = model_options(one.model)
    for key in one.settings:
        known = [*RunConfig.model_fields.keys() - set(DERIVED), *options]
        if key not in known:
            if having := [name for name in registry.names() if key in model_options(name)]:
                raise UsageError(
                    f"{one.model} has no {key}: it is an option of {', '.join(having)}"
                )
            raise unknown(f"{one.model} setting", key, known)
    config = _checked(study, one, start)
    check_options(one.model, config.model_options)
    if config.val_fraction == 0:
        raise UsageError("val_fraction = 0: a study compares on the hold-out, so there must be one")
    if config.optimizer not in _TORCH_OPTIMIZERS:
        from torch import nn

        from stl10bench.training.optim import make_optimizer

        make_optimizer(config, nn.Linear(1, 1))


def _checked(study: Study, one: Point, start: Start) -> RunConfig:
    return _choose(study, one, start)[0]


def _choose(study: Study, one: Point, start: Start) -> tuple[RunConfig, Weights]:
    keywords = start.keywords(one.model)
    return check_settings(one.model, recipe=study.recipe, settings=one.settings, **keywords)


def plan(
    study: Study, chosen: Sequence[Point], start: Start, data: Dataset, device: str
) -> list[Planned]:
    """The run of each point on these data; one that cannot be says why."""

    planned = []
    for one in chosen:
        trial = make_trial(study, one, start)
        title = f"{named(study.vary, one.labels)} seed {one.seed}"
        try:
            config = resolve_trial(trial, data, device)
            _, held_out = training_rows(config, data)
            planned.append(Planned(title, one, trial, config, "", len(held_out)))
        except BenchError as error:
            planned.append(Planned(title, one, trial, None, str(error), 0))
    return planned


def base(study: Study, start: Start, data: Dataset, device: str) -> str | None:
    """The name of the run of the first seed with nothing varied; None where there is none."""
    trial = make_trial(study, Point((), study.model, study.settings, study.seeds[0]), start)
    try:
        return resolve_trial(trial, data, device).name
    except BenchError:
        return None


def make_trial(study: Study, one: Point, start: Start) -> Trial:
    """The run of a point, as arguments and as keywords of `train`."""
    settings = {**one.settings, "seed": one.seed}
    return Trial(
        one.model,
        ("--recipe", study.recipe, *start.arguments(one.model), *arguments(settings)),
        {"recipe": study.recipe, **start.keywords(one.model), **settings},
    )


def arguments(settings: Mapping[str, Value]) -> list[str]:
    """Settings and options of a model -> the options of `train` that give them."""
    given = []
    for key, value in settings.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        if key in RunConfig.model_fields:
            given.append(f"--{key.replace('_', '-')}={text}")  # in one word: it may begin with -
        else:
            given += ["--model-option", f"{key}={text}"]
    return given
