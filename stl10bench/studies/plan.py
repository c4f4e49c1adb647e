"""A study or a list of models, options, data -> the runs to be: a job each, or why not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from types import UnionType
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
from stl10bench.studies.study import Point, Range, Settings, Study, label, levels, point, points
from stl10bench.training.job import OPTIONS, Job, make_job
from stl10bench.training.resolve import check_settings, fit_batch, resolve_config

REPORT_MODELS = ("logistic", "mlp", "cnn", "mobilenetv2")  # five rows: the last counts twice
PROTOCOLS = ("full", "folds", "k-fold")
_OF_SPLIT = ("seed", "fold", "k_fold", "k_fold_part", "val_fraction", "labels_per_class")
K_FOLD = 5  # parts, unless --k-fold says another number
FOLDS = 10

_ALL = 64  # runs, up to which all of them are checked beforehand
_TORCH_OPTIMIZERS = ("sgd", "adam", "adamw")  # others are asked of timm, which takes seconds


# Split -> images to train and to validate on: splitting takes longer than all else of a plan.
Counts = dict[tuple[Any, ...], tuple[int, int]]


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


def make_start(options: Mapping[str, Any]) -> Start:
    """What --weights and --pretrained mean; raises what `find_weights` raises."""
    weights, pretrained = options.get("weights"), options.get("pretrained", True)
    if weights is None:
        return Start(None, pretrained)
    file = find_weights(weights, Path(options["runs_dir"]))
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
    train_images: int = 0

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


def plan_runs(points: Sequence[Point], recipe: str, common: Common) -> list[Planned]:
    """The run of each point; one that cannot be says why."""
    counts: Counts = {}
    planned = []
    for place in points:
        job, failure, trained, validated = None, None, 0, 0
        try:
            job, trained, validated = _job(place, recipe, common, counts)
        except BenchError as error:
            failure = Failure(model=place.model, error=str(error))
        run = Planned(place.title, place.labels, place.seed, validated, job, failure, trained)
        planned.append(run)
    return planned


def _job(place: Point, recipe: str, common: Common, counts: Counts) -> tuple[Job, int, int]:
    """The run of a point, and how many images it trains and validates on."""
    config, weights = _choose(place, recipe, common.start)
    config = resolve_config(config, common.data, weights, common.device)
    split = tuple(getattr(config, key) for key in _OF_SPLIT)
    if split not in counts:
        train, val = training_rows(config, common.data)
        counts[split] = len(train), len(val)
    trained, validated = counts[split]
    config = fit_batch(config, place.settings, trained)
    file = None if weights.file is None else weights.file.absolute()
    job = make_job(config, weights=file, recipe=recipe, **common.options)
    return job, trained, validated


def _choose(place: Point, recipe: str, start: Start) -> tuple[RunConfig, Weights]:
    settings = {**place.settings, "seed": place.seed}
    return check_settings(
        place.model, recipe=recipe, settings=settings, **start.keywords(place.model)
    )


# Studies


def base_run(study: Study, common: Common) -> str | None:
    """The name of the run of the first seed with nothing varied; None where there is none."""
    try:
        base = Point("", (), study.model, study.settings, study.seeds[0])
        return _job(base, study.recipe, common, {})[0].config.name
    except BenchError:
        return None


def weight_sources(study: Study, start: Start) -> list[str]:
    """What the backbones of a study's runs start from, as their configs have it."""
    return sorted({_choose(end, study.recipe, start)[1].source for end in _ends(study)})


def longest(study: Study, start: Start) -> int:
    """The epochs of the study's longest run."""
    return max(_choose(end, study.recipe, start)[0].epochs for end in _ends(study))


def check(study: Study, start: Start) -> None:
    """Raise UsageError for what can be known to be wrong before the first run.

    Unknown models, factors and values (with the nearest name), settings that are both fixed and
    varied or varied twice, values out of their range, too many runs, and a study without validation
    images. Of a large study each value is tried once, not with all others.
    """
    by: dict[str, list[str]] = {}  # the factors that decide a setting
    for name, factor in study.vary.items():
        bundles = factor.values() if isinstance(factor, dict) else [{name: factor}]
        for key in {key for settings in bundles for key in settings}:
            by.setdefault(key, []).append(name)
    for key, factors in sorted(by.items()):
        if key in study.settings:
            raise UsageError(
                f"study {study.name} both sets and varies {key}: leave out one of the two, or pass "
                f"other values with --vary {key}=A,B"
            )
        if len(factors) > 1:
            raise UsageError(
                f"{factors[0]} and {factors[1]} both vary {key}: leave it out of one of the two"
            )
    if "seed" in by.keys() | study.settings.keys():
        raise UsageError("a study cannot set or vary seed: use --seeds")
    if "fold" in by.keys() | study.settings.keys():
        raise UsageError(
            "a study cannot set or vary fold: a fold leaves no validation images to compare on; "
            "use 'stl10bench benchmark --protocol folds'"
        )
    if study.is_grid:
        points(study)  # raises for too many
    for name, factor in study.vary.items():
        if isinstance(factor, Range):
            is_whole(study, name)
    for end in _ends(study):
        _check_point(study, end, start)


def is_whole(study: Study, name: str) -> bool:
    """Whether a setting that has a range takes whole numbers only, by its type.

    Raises UsageError for one that takes no numbers.
    """
    if name in RunConfig.model_fields:
        types = _types(RunConfig.model_fields[name].annotation)
    else:
        options = [model_options(model) for model in {end.model for end in _ends(study)}]
        types = {t for keys in options if name in keys for t in _types(keys[name].annotation)}
    if not types <= {"int", "float", "NoneType"}:
        raise UsageError(
            f"{name} is not a number and cannot have a range: list its values (--vary {name}=A,B)"
        )
    return "int" in types and "float" not in types


def _types(kind: Any) -> set[str]:
    """The names of the types that a value may have; an annotation may be text itself."""
    if get_origin(kind) is Annotated:
        return _types(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return {name for part in get_args(kind) for name in _types(part)}
    return {getattr(kind, "__name__", str(kind))}


def _ends(study: Study) -> list[Point]:
    """The points of a study with its first seed, of a range both ends.

    Of a large one each value of each factor once, beside the first ones of the others.
    """
    grid: list[list[tuple[str, Settings]]] = [
        [(label(end), {name: end}) for end in (factor.low, factor.high)]
        if isinstance(factor, Range)
        else levels(name, factor)
        for name, factor in study.vary.items()
    ]
    if prod(map(len, grid)) <= _ALL:
        return [point(study, chosen, study.seeds[0]) for chosen in product(*grid)]
    first = [values[0] for values in grid]
    return [
        point(study, [*first[:at], value, *first[at + 1 :]], study.seeds[0])
        for at, values in enumerate(grid)
        for value in values
    ]


def _check_point(study: Study, end: Point, start: Start) -> None:
    model = end.model
    registry.check_name(model)
    options = model_options(model)
    for key in end.settings:
        fields = RunConfig.model_fields.keys() - set(DERIVED) | {"method_options"}
        keys = [*fields, *options]
        if key not in keys:
            if having := [name for name in registry.names() if key in model_options(name)]:
                raise UsageError(f"{model} has no option {key}: use it with {', '.join(having)}")
            raise unknown(f"{model} setting", key, keys)
    config, _ = _choose(end, study.recipe, start)
    check_options(model, config.model_options)
    if config.val_fraction == 0 and not study.over_labels:
        raise UsageError("val_fraction = 0: a study compares on validation images; raise it")
    if config.optimizer not in _TORCH_OPTIMIZERS:
        from torch import nn

        from stl10bench.training.optim import make_optimizer

        make_optimizer(config, nn.Linear(1, 1))


# Benchmarks


def benchmark_points(
    models: Sequence[str],
    settings: Mapping[str, Any],
    *,
    freeze: bool | None = None,
    seeds: int | None = None,
    protocol: str = "full",
) -> list[Point]:
    """The runs of a benchmark; a backbone gives two, frozen and fine-tuned, unless `freeze` is set.

    With `seeds` = n each is repeated with the seeds 0 to n-1, in the protocol `folds` on each of
    the ten folds, in `k-fold` with each of the k_fold parts. The first repeat of all comes first,
    so that there is a whole table early. A model's options are given only to the models that have
    them. Raises UsageError for unknown names, for an option that no model has, and for a seed or a
    fold that is given twice.
    """
    if not models:
        raise UsageError("Missing model: name one or more, or pass --all for the report's models")
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    variants: list[tuple[str, dict[str, Any]]] = []
    for model in dict.fromkeys(models):
        registry.check_name(model)
        frozen = (True, False) if freeze is None else (freeze,)
        is_backbone = registry.backbone_name(model) is not None
        variants += [(model, {"freeze": f}) for f in frozen] if is_backbone else [(model, {})]
    seed_settings = [{"seed": seed} for seed in range(seeds)] if seeds else [{}]
    folds: list[dict[str, int]] = [{}]
    if protocol == "folds":
        folds = [{"fold": fold} for fold in range(FOLDS)]
    elif protocol == "k-fold":
        parts = int(settings.get("k_fold", K_FOLD))
        settings = {key: value for key, value in settings.items() if key != "k_fold"}
        folds = [{"k_fold_part": part, "k_fold": parts} for part in range(parts)]
    for key, repeats in {"--seeds": seed_settings, f"--protocol {protocol}": folds}.items():
        for name in settings.keys() & repeats[0].keys():
            option = _option(name)
            raise UsageError(f"{option} {settings[name]} contradicts {key}: pass only one of them")
    keys = {model: RunConfig.model_fields.keys() | model_options(model).keys() for model in models}
    for key in settings.keys() - set().union(*keys.values()):
        raise UsageError(f"none of the models has the option {key}={settings[key]}: leave it out")
    points = []
    for seed, fold, (model, variant) in product(seed_settings, folds, variants):
        own = {**variant, **seed, **fold}
        fitting = {key: value for key, value in settings.items() if key in keys[model]} | own
        title = _as_command(model, own)
        points.append(Point(title, (), model, fitting, int(fitting.get("seed", 0))))
    return points


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _as_command(model: str, settings: Mapping[str, Any]) -> str:
    """The run as a command line would name it."""
    words = [model]
    for key, value in settings.items():
        flag = f"{_option(key)} {value}" if key != "freeze" else "--freeze"
        words.append("--no-freeze" if value is False else flag)
    return " ".join(words)
