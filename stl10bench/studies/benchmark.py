"""A list of models -> the trials of a benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stl10bench.core.errors import UsageError, unknown
from stl10bench.models import registry
from stl10bench.models.factory import model_options

REPORT_MODELS = (
    "logistic",
    "mlp",
    "cnn",
    "mobilenetv2",
)  # the report's five rows: the last counts twice


PROTOCOLS = ("full", "folds")
FOLDS = 10


@dataclass(frozen=True)
class Entry:
    """One run to be: a model, and the options that tell it from its repeats.

    `freeze` is None for a model without a backbone, `seed` and `fold` where they are not asked for.
    """

    model: str
    freeze: bool | None = None
    seed: int | None = None
    fold: int | None = None

    @property
    def keywords(self) -> dict[str, Any]:
        """Its own keywords of `api.train`."""
        own = {"freeze": self.freeze, "seed": self.seed, "fold": self.fold}
        return {key: value for key, value in own.items() if value is not None}

    @property
    def arguments(self) -> list[str]:
        """Its own options of `train`."""
        flag = {None: [], True: ["--freeze"], False: ["--no-freeze"]}[self.freeze]
        numbers = {"--seed": self.seed, "--fold": self.fold}
        return flag + [
            part for name, n in numbers.items() if n is not None for part in (name, str(n))
        ]


def plan_benchmark(
    models: Sequence[str],
    *,
    everything: bool,
    freeze: bool | None,
    seeds: int | None = None,
    protocol: str = "full",
) -> list[Entry]:
    """The runs of a benchmark; a backbone gives two, frozen and learned, unless one is asked for.

    With `seeds` = n each is repeated with the seeds 0 to n-1, in the protocol `folds` on each of
    the ten folds. The first repeat of all comes first, so that there is a whole table early.
    Raises UsageError for unknown names, and when nothing is asked for.
    """
    names = list(dict.fromkeys([*(REPORT_MODELS if everything else ()), *models]))
    if not names:
        raise UsageError("benchmark what? Name models, or --all for the report's five rows")
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    entries = []
    for name in names:
        registry.check_name(name)
        if registry.backbone_name(name) is None:
            entries.append(Entry(name))
        else:
            both = (True, False) if freeze is None else (freeze,)
            entries += [Entry(name, one) for one in both]
    return [
        replace(entry, seed=seed, fold=fold)
        for seed in (range(seeds) if seeds else (None,))
        for fold in (range(FOLDS) if protocol == "folds" else (None,))
        for entry in entries
    ]


def fit_options(entries: Sequence[Entry], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`train`'s options for each entry: weights and model options only where the model has them.

    Raises UsageError for a model option that none of the models has, and for a seed or a fold
    that is given twice.
    """
    for key in ("seed", "fold"):
        if options[key] is not None and getattr(entries[0], key) is not None:
            other = {"seed": "--seeds", "fold": "--protocol folds"}[key]
            raise UsageError(f"--{key} {options[key]} and {other} contradict each other: give one")
    own = [f"{key}={options[key]}" for key in ("hidden", "dropout") if options[key] is not None]
    own += options["model_option"] or []
    fitted, used = [], set()
    for entry in entries:
        known = model_options(entry.model) if own else {}
        kept = [pair for pair in own if pair.partition("=")[0] in known]
        used.update(kept)
        weights = options["weights"] if registry.backbone_name(entry.model) else None
        own_options = {"hidden": None, "dropout": None, "model_option": kept}
        fitted.append({**options, **own_options, "weights": weights})
    if unused := [pair for pair in own if pair not in used]:
        raise UsageError(f"model option {unused[0]}: none of the models has it")
    return fitted
