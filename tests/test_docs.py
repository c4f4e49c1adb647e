"""The documentation: its links lead somewhere, its commands exist, its Python compiles."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_group

from stl10bench.cli.main import app
from stl10bench.data.stl10 import open_dataset

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
    return lines("".join(blocks(page, "sh")).splitlines() + inline)


def lines(texts: list[str]) -> Iterator[list[str]]:
    for text in texts:
        words = shlex.split(text, comments=True)
        called = words[:1] == ["stl10bench"] or "-m stl10bench" in " ".join(words)  # by a launcher
        if called:
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


# Pages whose commands are run, in this order in one folder: later ones use the runs of the first.
RUN = ("tutorial", "how-to/predict", "how-to/export", "how-to/own-photos", "how-to/own-model")
QUICK = {  # options that make a command short, and that let it do without the network
    "train": "--epochs 1 --tracker none",
    "benchmark": "--recipe quick --no-pretrained --tracker none",
    "study run": "--seeds 1 --tracker none",
}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_is_run_by_a_test_or_marked_as_not_run(page: Path) -> None:
    if page not in [ROOT / f"docs/{part}.md" for part in RUN]:
        unmarked = [m["code"] for m in _BLOCK.finditer(page.read_text()) if is_run(m)]
        assert not unmarked, f"put <!-- not run: REASON --> above {unmarked[0]}"


def is_run(block: re.Match[str]) -> bool:
    return block["kind"] == "sh" and not block["mark"]


@pytest.mark.faults
def test_the_commands_of_the_documentation_run_on_demo_images(tmp_path: Path) -> None:
    run(tmp_path, "data", "make-demo", "--train", "300", "--test", "100")
    data = tmp_path / "data/demo"
    # as many as make a batch of every model
    images = open_dataset(data, stamp=False).train.images[:200].transpose(0, 2, 3, 1)
    for number, pixels in enumerate(images):
        for folder in ("PHOTOS", "holiday"):
            file = tmp_path / folder / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    Image.fromarray(images[0]).save(tmp_path / "photo.jpg")
    for part in RUN:
        page = ROOT / f"docs/{part}.md"
        if part == "how-to/own-model":
            (tmp_path / "my_models.py").write_text(blocks(page, "python")[0])
        code = "".join(m["code"] for m in _BLOCK.finditer(page.read_text()) if is_run(m))
        for words in lines(code.splitlines()):
            key = next((key for key in QUICK if " ".join(words).startswith(key)), "")
            run(tmp_path, *words, *QUICK.get(key, "").split(), data=data)


def run(folder: Path, *words: str, data: Path | None = None) -> None:
    print("$ stl10bench", *words, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if data is not None:
        environment["STL10BENCH_DATA"] = str(data)
    command = [sys.executable, "-m", "stl10bench", *words]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, f"{words}: {ended.stdout[-1000:]}{ended.stderr[-2000:]}"


def test_the_readme_is_a_door() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
