"""A study that ran -> its table, its CSV, and what was found, beside the report."""

from collections.abc import Iterable, Sequence
from typing import Any

from stl10bench.core.console import escape_markdown
from stl10bench.metrics.significance import SIGNIFICANCE
from stl10bench.results.labels import common_title
from stl10bench.results.rows import Row
from stl10bench.results.table import Table, to_csv, to_markdown
from stl10bench.studies import budgets, study
from stl10bench.studies.ranking import (
    BEST,
    TIED,
    WORSE,
    Place,
    Trained,
    rank,
)
from stl10bench.studies.record import Record

_FACTS = (
    *("val_accuracy", "val_loss", "test_accuracy", "test_loss", "best_epoch", "epochs"),
    "train_seconds",
)


def title(record: Record, trained: Sequence[Trained]) -> str:
    """The study and the data, which are called STL-10 only if they are."""
    rows = [run.row for run in trained if isinstance(run.row, Row)]
    data = common_title(rows) if rows else f"{record.dataset} {record.data[:12]}"
    return f"{record.study.name} ({record.study.model}, {record.study.recipe}): {data}"


def findings(record: Record, trained: Sequence[Trained]) -> list[str]:
    """What was found, in lines of plain words."""
    if record.study.over_labels:
        return budgets.gains(trained)
    lines = [f"found here: {finding(record, trained)}"]
    if record.study.finding:
        verdict = held(record, rank(trained))
        lines.append(f"the report found: {record.study.finding} ({verdict})")
    return lines


def finding(record: Record, trained: Sequence[Trained]) -> str:
    """What a study found, in a line of plain words."""
    factors, places = list(record.study.vary), rank(trained)
    named = {place.labels: study.named(factors, place.labels) for place in places}
    parts = [best(record, places)]
    if not places or not places[0].is_whole:
        return parts[0]
    for verdict, words in ((TIED, "tied with it"), (WORSE, "significantly worse")):
        group = [named[place.labels] for place in places if place.verdict == verdict]
        if group:
            parts.append(f"{words}: {some(group)}")
    guessing = [named[place.labels] for place in places if place.at_chance]
    if guessing:
        parts.append(f"at chance level: {some(guessing)}")
    if diverged := [named[place.labels] for place in places if "diverged" in place.verdict]:
        parts.append(f"diverged: {some(diverged)}")
    return "; ".join(parts)


def best(record: Record, places: Sequence[Place]) -> str:
    """The setting that came first, and what it reached."""
    if not places or not places[0].is_whole:
        return "nothing yet: every setting lacks runs"
    first = f"{study.named(record.study.vary, places[0].labels)} with {spread(places[0])}"
    lacking = sum(place.missing > 0 for place in places)
    settings = "1 setting lacks" if lacking == 1 else f"{lacking} settings lack"
    return f"best so far ({settings} runs): {first}" if lacking else f"best: {first}"


def held(record: Record, places: Sequence[Place]) -> str:
    """Whether the values that the report calls the best are the best here: a word, and why.

    The word, before the colon: Holds, Tied, Contradicted, Not known, or Not compared.
    """
    if not record.study.best:
        return "Not compared: the report's study had other settings"
    wanted = tuple(record.study.best.get(factor, "") for factor in record.study.vary)
    place = next((place for place in places if place.labels == wanted), None)
    if place is None:
        return "Not known: the report's best was not run"
    if any(place.missing for place in places):
        return "Not known: settings lack runs"
    if not place.is_whole:
        return f"Contradicted: the report's best: {place.verdict}"
    verdicts = [other.verdict for other in places if other is not place]
    if place.verdict == BEST and TIED in verdicts:
        return "Tied: the report's best is the best here, tied with others"
    if place.verdict == BEST and WORSE not in verdicts:
        return "Not known: there are no other settings to compare"
    return {
        BEST: "Holds: the report's best is the best here; the others are significantly worse",
        TIED: "Tied: the report's best is tied with the best here (within noise)",
        WORSE: "Contradicted: the report's best is significantly worse than the best here",
    }[place.verdict]


def spread(place: Place) -> str:
    """The mean validation accuracy of a setting and its standard deviation over the seeds."""
    if place.sample is None:
        return "-"
    deviation = place.sample.deviation
    return f"{place.sample.mean:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def some(names: Sequence[str], most: int = 4) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def study_to_tables(record: Record, trained: Sequence[Trained]) -> list[Table]:
    """The ranking; of a study over labels one for each number and each kind of knowledge."""
    if record.study.over_labels:
        return budgets.tables(trained)
    return [study_to_table(record, trained)]


def study_to_table(record: Record, trained: Sequence[Trained]) -> Table:
    """The ranking as a table, for any kind of output."""
    factors, places = list(record.study.vary), rank(trained)
    lines = []
    for place in places:
        chance = " at chance" if place.at_chance else ""
        done = len(place.sample.accuracies) if place.sample else 0
        lines.append(
            (
                *place.labels,
                spread(place) + chance,
                "-" if place.behind is None else f"{100 * place.behind:.1f}",
                place.verdict,
                f"{done}/{place.asked}" if done < place.asked else str(done),
                "-" if place.test_accuracy is None else f"{place.test_accuracy:.3f}",
            )
        )
    header = (*factors, "validation accuracy", "behind", "vs best", "seeds", "test accuracy")
    explained = tuple(("", note) for note in notes(places))
    return Table(title(record, trained), header, tuple(lines), explained, ("vs best",))


def study_to_markdown(
    record: Record, trained: Sequence[Trained], figures: Sequence[str] = ()
) -> str:
    """A page: what the study is, its ranking, what was found, and its figures, by their files."""
    facts = record.study.facts
    name = facts.pop("study")
    about = [facts.pop(key) for key in ("about",) if key in facts]
    del facts["runs"]
    lines = [f"{key}: {fact}" for key, fact in facts.items() if key != "the report found"]
    return "\n".join(
        [
            f"# {name}\n",
            *(f"{escape_markdown(text)}\n" for text in [*about, "; ".join(lines)]),
            *(to_markdown(table) for table in study_to_tables(record, trained)),
            *(f"- {escape_markdown(line)}" for line in findings(record, trained)),
            *(f"\n![{name}]({file})" for file in figures),
            "",
        ]
    )


def notes(places: Sequence[Place]) -> list[str]:
    """How the table is to be read."""
    lines = [
        "validation accuracy: mean ± standard deviation over the seeds; behind: percentage points "
        "below the best",
        f"vs best: worse means significantly worse, p < {SIGNIFICANCE}, Holm-corrected for all "
        "pairs, over the seeds (t-test, variance pooled over all settings) and over the "
        "validation images (z-test); else tied",
        "the order and the verdicts do not use the test split",
    ]
    if any(place.sample and len(place.sample.accuracies) == 1 for place in places):
        lines.append("with one seed, the verdicts include the noise of the images only")
    return lines


def study_to_csv(record: Record, trained: Sequence[Trained]) -> str:
    """A line for each run: its values, its seed, what it reached or why not."""
    head = (*record.study.vary, "seed", "run", "state", "val_images", *_FACTS, "reason")
    return to_csv(head, [(*run.labels, *_run_facts(run).values()) for run in trained])


def study_to_json(record: Record, trained: Sequence[Trained]) -> dict[str, Any]:
    """The study, its ranking (none of one over labels), what was found, and its runs."""
    factors = record.study.vary
    places = [] if record.study.over_labels else rank(trained)
    return {
        "study": record.study.model_dump(mode="json"),
        "ranking": [_place_facts(factors, place) for place in places],
        "findings": findings(record, trained),
        "runs": [
            {"settings": dict(zip(factors, run.labels, strict=True)), **_run_facts(run)}
            for run in trained
        ],
    }


def _place_facts(factors: Iterable[str], place: Place) -> dict[str, Any]:
    sample = place.sample
    return {
        "settings": dict(zip(factors, place.labels, strict=True)),
        "val_accuracy": None if sample is None else sample.mean,
        "val_accuracy_sd": None if sample is None else sample.deviation,
        "behind": place.behind,
        "p": place.p,
        "vs_best": place.verdict,
        "at_chance": place.at_chance,
        "seeds": 0 if sample is None else len(sample.accuracies),
        "seeds_asked": place.asked,
        "test_accuracy": place.test_accuracy,
    }


def _run_facts(run: Trained) -> dict[str, Any]:
    """What a run reached, or why not."""
    facts: dict[str, Any] = dict.fromkeys(_FACTS)
    state, reason = "missing", None
    if isinstance(run.row, Row):
        state, facts = "finished", {key: run.row[key] for key in _FACTS}
    elif run.row is not None:
        state, reason = run.row.state, run.row.error
    head = {"seed": run.seed, "run": run.run, "state": state, "val_images": run.val_images}
    return {**head, **facts, "reason": reason}
