"""A study that ran -> what the document says of it: its finding, and what was reduced."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from stl10bench.core.console import clean
from stl10bench.plots.studies import Results, factor_name, shown
from stl10bench.results.columns import plain
from stl10bench.results.rows import Row
from stl10bench.results.table import Table
from stl10bench.studies import parse, summary
from stl10bench.studies.ranking import TIED, WORSE, Place, Trained, rank
from stl10bench.studies.record import Record
from stl10bench.studies.study import Study, label

_VERDICTS = (
    "Verdicts, by the accuracy on the validation images. Holds: the report's best is the best "
    "here, and the others are significantly worse. Tied: it is the best, or differs from it by no "
    "more than noise. Contradicted: it is significantly worse than the best here. Not compared: "
    "the report's study had other settings."
)


class Ablation(NamedTuple):
    """A study that has run."""

    record: Record
    trained: Sequence[Trained]
    results: Results

    @property
    def study(self) -> Study:
        return self.record.study

    @property
    def rows(self) -> list[Row]:
        """Those of its finished runs."""
        return [run.row for run in self.trained if isinstance(run.row, Row)]


def finding(ablation: Ablation) -> str:
    """What was found here, the report's finding, and the verdict."""
    places = rank(ablation.trained)
    verdict = summary.held(ablation.record, places)
    found = _found(ablation.study, places)
    report = parse.preset(ablation.study.name).finding
    return f"{found} The report found: {report}. {verdict}."


def _found(study: Study, places: Sequence[Place]) -> str:
    if not places or not places[0].is_whole:
        return "Every setting lacks runs, so that nothing is found yet."
    lacking = sum(place.missing > 0 for place in places)
    so_far = f" so far ({lacking} of {len(places)} settings lack runs)" if lacking else ""
    text = f"Best here{so_far}: {best(study, places)}, validation accuracy "
    text += summary.spread(places[0])
    groups = {
        "tied with it": [place for place in places if place.verdict == TIED],
        "significantly worse": [place for place in places if place.verdict == WORSE],
        "diverged": [place for place in places if "diverged" in place.verdict],
        "failed": [place for place in places if "failed" in place.verdict],
    }
    for words, group in groups.items():
        if group:
            text += f"; {words}: {summary.some([_values(place.labels) for place in group])}"
    guessing = [_values(place.labels) for place in places if place.at_chance]
    return f"{text}; at chance level: {summary.some(guessing)}." if guessing else f"{text}."


def best(study: Study, places: Sequence[Place]) -> str:
    """The setting that came first, in words."""
    factors = map(factor_name, study.vary)
    return " with ".join(map(" ".join, zip(factors, map(shown, places[0].labels), strict=True)))


def _values(labels: Sequence[str]) -> str:
    return " with ".join(map(shown, labels))


def conditions(ablation: Ablation) -> str:
    """What all settings share, and in what the study differs from the whole one of its name."""
    return " ".join(filter(None, (_shared(ablation), _reduced(ablation.study))))


def _shared(ablation: Ablation) -> str:
    study, rows = ablation.study, ablation.rows
    if not rows:
        return ""
    config = rows[0].config
    values = {
        "optimizer": config.optimizer,
        "lr": f"learning rate {plain(config.lr)}",
        "batch_size": f"batch size {config.batch_size}",
        "epochs": f"{config.epochs} epochs",
    }
    for key, value in study.settings.items():
        values.setdefault(key, "frozen backbone" if key == "freeze" else setting(key, value))
    shared = [text for key, text in values.items() if key not in study.vary]
    seeds = len(study.seeds)
    return f"In all runs: {', '.join(shared)}; {seeds} seed{'s'[: seeds - 1]}."


def setting(key: str, value: Any) -> str:
    """A setting of a study in words: channels 32-64-64-128."""
    return f"{factor_name(key)} {shown(label(value)).replace(',', '-')}"


def _reduced(study: Study) -> str:
    whole = parse.preset(study.name)
    changed = [name for name, factor in study.vary.items() if factor != whole.vary.get(name)]
    changed += [key for key, value in study.settings.items() if value != whole.settings.get(key)]
    names = list(map(factor_name, changed))
    names += ["seeds"] if study.seeds != whole.seeds else []
    names += [f"recipe ({study.recipe})"] if study.recipe != whole.recipe else []
    return f"Changed from the full study: {', '.join(names)}." if names else ""


def findings_table(ablations: dict[str, Ablation]) -> Table:
    """A line for each study of the report: what was found here and there, and the verdict."""
    lines = []
    for name in parse.REPORT:
        whole, ablation = parse.preset(name), ablations.get(name)
        found = ("not run yet", "-", "")
        if ablation is not None:
            places = rank(ablation.trained)
            verdict = summary.held(ablation.record, places).partition(":")[0]
            found = ("nothing yet", "-", verdict)
            if places and places[0].is_whole:
                found = (best(ablation.study, places), summary.spread(places[0]), verdict)
        lines.append((whole.about.rstrip("."), clean(found[0]), found[1], whole.finding, found[2]))
    header = ("study", "best here", "validation accuracy", "the report found", "verdict")
    left = ("best here", "the report found", "verdict")
    return Table("The nine findings", header, tuple(lines), (("verdict", _VERDICTS),), left)
