"""A study: one model, settings that are varied, seeds -> the runs that it consists of."""

from collections.abc import Iterable, Sequence
from itertools import product
from math import prod
from typing import Annotated, Any, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from stl10bench.config import Scalar
from stl10bench.core.errors import UsageError

MOST_RUNS = 2000

Value = Scalar | list[Scalar]
Options = dict[str, Scalar]  # those of a method
Settings = dict[str, Value | Options]


class Range(BaseModel):
    """Numbers that a search may try: from `low` to `high`, whole ones where the setting's are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: int | float = Field(allow_inf_nan=False)
    high: int | float = Field(allow_inf_nan=False)
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"{self.low}..{self.high}: must be LOW..HIGH with LOW < HIGH, and LOW > 0 with log"
            )
        return self


def _kind(factor: Any) -> str | None:
    """Which kind of factor a value of a file's table `vary` is meant to be."""
    if isinstance(factor, list | Range):
        return "values" if isinstance(factor, list) else "range"
    if not isinstance(factor, dict):
        return None
    return "bundles" if all(isinstance(values, dict) for values in factor.values()) else "range"


Factor = Annotated[
    Annotated[Range, Tag("range")]
    | Annotated[list[Value], Field(min_length=1), Tag("values")]
    | Annotated[dict[str, Settings], Field(min_length=1), Tag("bundles")],
    Discriminator(_kind),
]


class Study(BaseModel):
    """What is varied, from which settings, with which seeds.

    A factor is a setting of RunConfig, an option of the model or `model` with its values, or a name
    of its own for bundles of settings, each with a name. `best` and `finding` are what the report
    says of it, where it is one of the report's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,59}$")
    about: str = Field(default="", max_length=300)
    model: str
    recipe: str = "tuned"
    settings: Settings = {}
    vary: dict[str, Factor] = Field(min_length=1, max_length=6)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0, 1, 2), min_length=1)
    finding: str = ""
    best: dict[str, str] = {}

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, seeds: Any) -> Any:
        """A number n means the seeds 0 to n - 1."""
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            if not 1 <= seeds <= 1000:
                raise ValueError(f"{seeds}: must be a number from 1 to 1000, or a list of seeds")
            return tuple(range(seeds))
        return seeds

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{', '.join(map(str, seeds))}: a seed is listed twice")
        return seeds

    @field_validator("vary")
    @classmethod
    def _different_values(cls, vary: dict[str, Factor]) -> dict[str, Factor]:
        for name, factor in vary.items():
            labels = [text for text, _ in levels(name, factor)]
            if twice := next((text for text in labels if labels.count(text) > 1), None):
                raise ValueError(f"{name}: {twice} is listed twice")
        return vary

    @property
    def factors(self) -> str:
        """What is varied, on one line; as in --vary, slashes separate values that have commas."""
        parts = []
        for name, factor in self.vary.items():
            labels = [label for label, _ in levels(name, factor)]
            parts.append(f"{name} {(' / ' if ',' in ''.join(labels) else ', ').join(labels)}")
        return "; ".join(parts)

    @property
    def facts(self) -> dict[str, str]:
        """What the study is, in words; what it does not say is left out."""
        facts = {
            "study": self.name,
            "about": self.about,
            "model": self.model,
            "recipe": self.recipe,
            "settings": ", ".join(f"{key} {label(value)}" for key, value in self.settings.items()),
            "varied": self.factors,
            "seeds": ", ".join(map(str, self.seeds)),
            "runs": f"{len(points(self))}" if self.is_grid else "a search",
            "the report found": self.finding,
        }
        return {key: fact for key, fact in facts.items() if fact}

    @property
    def over_labels(self) -> bool:
        """Whether it lists numbers of labels: then it ranks the rest for each number alone.

        By the test split, for nothing is chosen: with few labels there are no validation images.
        """
        return self.is_grid and isinstance(self.vary.get("labels_per_class"), list)

    @property
    def is_grid(self) -> bool:
        """Whether all that is varied has listed values."""
        return not any(isinstance(factor, Range) for factor in self.vary.values())


class Point(NamedTuple):
    """A run of a study or a benchmark: its settings and its seed; a study's has labels."""

    title: str  # on one line
    labels: tuple[str, ...]  # the value of each factor
    model: str
    settings: Settings
    seed: int


def points(study: Study) -> list[Point]:
    """All runs of a grid; those of the first seed come first, so that there is a picture early."""
    if not study.is_grid:
        name = next(name for name, factor in study.vary.items() if isinstance(factor, Range))
        raise UsageError(
            f"{name} is a range: list its values (--vary {name}=A,B), or search with --sampler tpe"
        )
    grid = [levels(name, factor) for name, factor in study.vary.items()]
    if (runs := len(study.seeds) * prod(map(len, grid))) > MOST_RUNS:
        raise UsageError(
            f"study {study.name}: {runs:,} runs; the limit is {MOST_RUNS:,}: vary fewer values"
        )
    return [point(study, chosen, seed) for seed in study.seeds for chosen in product(*grid)]


def point(study: Study, chosen: Sequence[tuple[str, Settings]], seed: int) -> Point:
    """The run of one level of each factor."""
    settings = dict(study.settings)
    for _, values in chosen:
        settings |= values
    model = str(settings.pop("model", study.model))
    labels = tuple(text for text, _ in chosen)
    title = f"{named(study.vary, labels)} seed {seed}"
    return Point(title, labels, model, settings, seed)


def levels(name: str, factor: Factor) -> list[tuple[str, Settings]]:
    """The values of a factor: a label and the settings that it means, each."""
    if isinstance(factor, Range):
        return [(f"{factor.low:g}..{factor.high:g}{' (log)' if factor.log else ''}", {})]
    if isinstance(factor, dict):
        return list(factor.items())
    return [(label(value), {name: value}) for value in factor]


def label(value: Value | Options) -> str:
    """A value as a table shows it: 0.001, 1e-05, yes, 512-256, views=2."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "-".join(map(label, value))
    if isinstance(value, dict):
        return named(value, map(label, value.values()))
    if isinstance(value, int | float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return value


def named(factors: Iterable[str], labels: Iterable[str]) -> str:
    """A setting on one line: lr=0.001 batch_size=128."""
    return " ".join(f"{factor}={text}" for factor, text in zip(factors, labels, strict=True))
