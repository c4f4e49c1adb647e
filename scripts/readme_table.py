"""Write the reference rows into the README's tables; `--check` says whether they are current.

A table stands between `<!-- table NAME COLUMN,... -->` and `<!-- end -->`: NAME is a file of
`stl10bench/results/reference/`, the columns are those of `stl10bench table --columns`.
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from stl10bench.results.benchmark_table import View, reference_rows, show_rows

README = Path(__file__).parents[1] / "README.md"
_PLACE = re.compile(
    r"(<!-- table (?P<name>[\w-]+) (?P<columns>[\w,]+) -->\n).*?(<!-- end -->)", re.DOTALL
)


def table(name: str, columns: str) -> str:
    """The Markdown of one reference file's rows."""
    console = Console(file=io.StringIO(), width=1000)
    view = View(columns=tuple(columns.split(",")))
    show_rows(reference_rows(name), "markdown", console, view)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.strip()


def updated(text: str) -> str:
    """The README with its tables replaced by the current ones."""
    return _PLACE.sub(
        lambda place: f"{place[1]}\n{table(place['name'], place['columns'])}\n\n{place[4]}", text
    )


def main() -> None:
    """Rewrite the README; with --check change nothing, and exit with 1 if a table is outdated."""
    before = README.read_text(encoding="utf-8")
    after = updated(before)
    if not _PLACE.search(before):
        sys.exit(f"{README} has no table: restore its markers <!-- table NAME COLUMN,... -->")
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if before == after else f"{README}: outdated tables: run make readme-table")
    README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
