"""Write the generated parts of README.md and docs/; `--check` says whether they are current.

A part stands between `<!-- PART -->` and `<!-- end -->`:

table NAME COLUMN,...   rows of stl10bench/results/reference/NAME.json, with columns as in --columns
commands                each command with its arguments and options
recipes                 the settings of each recipe
rows                    the fields of a row
"""

import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo
from rich.console import Console

from stl10bench.cli.main import COMMANDS, app
from stl10bench.config import RECIPES, Limits, RunConfig
from stl10bench.results.benchmark_table import View, reference_rows, show_rows
from stl10bench.results.columns import COLUMNS
from stl10bench.results.rows import Row
from stl10bench.training.job import Job

ROOT = Path(__file__).parents[1]
_PLACE = re.compile(
    r"(<!-- (?P<part>table|commands|recipes|rows)\b(?P<words>.*?) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)
_BEGIN, _END = re.compile(r"<!-- (?:table|commands|recipes|rows)\b"), "<!-- end -->"
_SETTINGS = Job.model_fields | Limits.model_fields | RunConfig.model_fields
_KINDS = {
    "<class 'int'>": "integer",
    "int": "integer",
    "<class 'float'>": "number",
    "float": "number",
}
_EVERYWHERE = ("quiet", "verbose", "help", "help_all")
_PLACEHOLDERS = ("N", "X", "NAME", "PATH", "FILE", "DIR")  # say less than the kind and the bounds
_MANY = 20  # options shared with `train`: so many are a link rather than rows of a table


def table(name: str, columns: str) -> str:
    """The Markdown of one reference file's rows."""
    console = Console(file=io.StringIO(), width=1000)
    view = View(columns=tuple(columns.split(",")))
    show_rows(reference_rows(name), "markdown", console, view)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.strip()


def commands() -> str:
    """A section for each command: what it does, its arguments and options."""
    all_commands = dict(_commands())
    training = {option.name: option for option in all_commands["train"].params}
    sections = []
    for name, command in all_commands.items():
        options = [p for p in command.params if not p.hidden and p.name not in _EVERYWHERE]
        shared = [p for p in options if name != "train" and _is_same(training.get(p.name), p)]
        shared = shared if len(shared) > _MANY else []
        lines = [f"## {name}", _prose(command.help)]
        own = [option for option in options if option not in shared]
        for panel in dict.fromkeys(option.rich_help_panel or "" for option in own):
            cells = [_option(p) for p in own if (p.rich_help_panel or "") == panel]
            lines.append(_markdown((panel, "values", "default", "what it does"), cells))
        if shared:
            has = {"model", "job", *_EVERYWHERE, *(option.name for option in options)}
            missing = [f"`{training[name].opts[0]}`" for name in sorted(training.keys() - has)]
            but = f", without {', '.join(missing)}" if missing else ""
            lines.append(f"And the options of [train](#train){but}.")
        sections.append("\n\n".join(lines))
    return "\n\n".join(sections)


def recipes() -> str:
    """A table for each recipe: a row for each setting, a column for each kind of model."""
    parts = []
    for recipe, models in RECIPES.items():
        names = dict.fromkeys(name for settings in models.values() for name in settings)
        rows = [
            [f"`{name}`", *(_value(settings.get(name)) for settings in models.values())]
            for name in names
        ]
        parts.append(f"### {recipe}\n\n{_markdown(('setting', *models), rows)}")
    return "\n\n".join(parts)


def rows() -> str:
    """The fields of a row, with the titles that tables give them."""
    lines = []
    for name, field in Row.model_fields.items():
        title = COLUMNS[name].title if name in COLUMNS else ""
        lines.append([f"`{name}`", title, _plain(field.description or "")])
    return _markdown(("field", "column", "what it is"), lines)


PARTS: dict[str, Callable[..., str]] = {
    "table": table,
    "commands": commands,
    "recipes": recipes,
    "rows": rows,
}


def _commands() -> Iterator[tuple[str, Any]]:
    """Each command's name, and the command as its user meets it."""
    group = typer.main.get_group(app)
    context = group.make_context("stl10bench", ["models"], resilient_parsing=True)
    for name in COMMANDS:
        _, command, _ = group.resolve_command(context, [name])
        parts = getattr(command, "commands", None)
        yield from (
            ((f"{name} {part}", parts[part]) for part in parts) if parts else [(name, command)]
        )


def _is_same(one: Any, other: Any) -> bool:
    return one is not None and (one.opts, one.help) == (other.opts, other.help)


def _option(option: Any) -> list[str]:
    """An argument or option as a row: as it is typed, its values, its default, its help."""
    is_argument = option.param_type_name == "argument"
    names = [*option.opts, *option.secondary_opts]
    typed = option.name.upper() if is_argument else ", ".join(f"`{name}`" for name in names)
    field = _SETTINGS.get(option.name)
    metavar = "" if option.metavar in _PLACEHOLDERS else option.metavar or ""
    values = metavar.replace("|", " or ") or _values(field, option)
    text, _, stated = (option.help or "").replace(r"\[", "[").partition(" [default: ")
    default = stated.rstrip("].") or (option.name if option.default is True else option.default)
    if default is None and field is not None and isinstance(field.default, int | float):
        default = field.default
    return [typed, values, "required" if option.required else _value(default), _plain(text)]


def _values(field: FieldInfo | None, option: Any) -> str:
    """The kind of number and its bounds: integer, at least 1."""
    kind = "" if field is None else _KINDS.get(str(field.annotation).split(" |")[0], "")
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    words |= {"min": "at least", "max": "at most"}
    rules = [option] if field is None else field.metadata
    bounds = [(words[key], getattr(rule, key, None)) for rule in rules for key in words]
    parts = [kind, *(f"{word} {bound:,}" for word, bound in bounds if bound is not None)]
    return ", ".join(filter(None, parts))


def _value(value: Any) -> str:
    """A default or a setting as a cell."""
    if value in (None, False, []):
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(part)}" for key, part in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _prose(text: str | None) -> str:
    return "\n\n".join(_plain(part) for part in (text or "").strip().split("\n\n"))


def _plain(text: str) -> str:
    """A text of the code as Markdown in one line."""
    return " ".join(text.replace(r"\[", "[").replace("|", r"\|").replace("<", "&lt;").split())


def _markdown(titles: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    body = [list(titles), *map(list, lines)]
    body.insert(1, ["---"] * len(body[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body)


def updated(text: str) -> str:
    """A page with its generated parts replaced by the current ones."""

    def part(place: re.Match[str]) -> str:
        return f"{place[1]}\n{PARTS[place['part']](*place['words'].split())}\n\n{place[4]}"

    return _PLACE.sub(part, text)


def check_markers(pages: Mapping[Path, str]) -> None:
    """Exit with an error where a part has no end, an end no part, or no page has a part."""
    missing = set(PARTS)
    for page, text in pages.items():
        places = list(_PLACE.finditer(text))
        missing -= {place["part"] for place in places}
        nested = any(_BEGIN.search(place[0], 1) for place in places)
        if nested or not len(places) == len(_BEGIN.findall(text)) == text.count(_END):
            sys.exit(f"{page}: each <!-- PART --> must stand on a line before its own {_END}")
    if missing:
        sys.exit(f"no page has the part {', '.join(sorted(missing))}: add <!-- PART --> and {_END}")


def main() -> None:
    """Rewrite README.md and docs/; with --check only say what is outdated."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    pages = {path: path.read_text(encoding="utf-8") for path in paths}
    check_markers(pages)
    outdated = []
    for page, before in pages.items():
        after = updated(before)
        if before != after:
            outdated.append(str(page.relative_to(ROOT)))
            if sys.argv[1:] != ["--check"]:
                page.write_text(after, encoding="utf-8")
    if outdated and sys.argv[1:] == ["--check"]:
        sys.exit(f"{', '.join(outdated)}: outdated: run make docs-tables")


if __name__ == "__main__":
    main()
