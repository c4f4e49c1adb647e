"""The documentation: its links lead somewhere, its commands exist, its Python compiles."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_group

from stl10bench.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_BLOCK = re.compile(
    r"(?P<mark><!-- not run: [^>]+ -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)```", re.DOTALL
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, kind: str) -> list[str]:
    return [m["code"] for m in _BLOCK.finditer(page.read_text()) if m["kind"] == kind]


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `stl10bench` of each command in the page's sh blocks and inline code."""
    inline = re.findall(r"`(stl10bench [^`]+)`", page.read_text())
    for line in "".join(blocks(page, "sh")).splitlines() + inline:
        words = shlex.split(line, comments=True)
        if "stl10bench" in words:
            after = words[words.index("stl10bench") + 1 :]
            yield after[: after.index(">")] if ">" in after else after


def anchors(page: Path) -> set[str]:
    """What a code host calls the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def parse(group: Any, words: list[str], parent: Any = None) -> None:
    """Parse a command line as the program does, without running it."""
    with group.make_context(words[0], words[1:], parent=parent) as context:
        if hasattr(group, "commands"):
            rest = context._protected_args + context.args
            part, command, arguments = group.resolve_command(context, rest)
            parse(command, [part, *arguments], context)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_of_the_documentation_can_be_typed(page: Path) -> None:
    for words in commands(page):
        if words and not {"--help", "--install-completion", "COMMAND"} & set(words):
            parse(get_group(app), ["stl10bench", *words])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_python_of_the_documentation_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")


def test_the_readme_is_a_door() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
