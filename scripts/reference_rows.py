"""Finished runs -> a file of reference rows that ships with the package.

    python scripts/reference_rows.py RUNS_DIR NAME "TITLE"

`stl10bench table --reference` and the tables of README and docs show them; NAME is the file's in
stl10bench/results/reference/. The title goes on with the versions that the rows name. Each row has
which test images it got right and its confusion matrix, so that the rows can be ranked without
their runs.
"""

import json
import sys
from pathlib import Path
from typing import Any

from stl10bench.results.benchmark_table import stored_rows
from stl10bench.results.rows import Row

FOLDER = Path(__file__).parents[1] / "stl10bench/results/reference"


def main() -> None:
    """Write the rows of all finished runs; a damaged run, or one that failed, ends it."""
    runs_dir, name, title = sys.argv[1:]
    rows, damaged = stored_rows(Path(runs_dir))
    if damaged:
        raise damaged[0]
    if len(finished := [row for row in rows if isinstance(row, Row)]) < len(rows):
        sys.exit(f"runs in {runs_dir} failed: remove them, or train them again")
    stored = [stored_row(row) for row in finished]
    libraries = [row.libraries or {} for row in finished]
    versions = {
        name: ", ".join(sorted({each[name] for each in libraries if name in each}))
        for name in ("torch", "timm")
    }
    title += "".join(f", {name} {text}" for name, text in versions.items() if text)
    content = {"title": title, "rows": stored}
    text = json.dumps(content, separators=(",", ":")) + "\n"
    (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"{len(finished)} rows, {len(text) / 1e3:.0f} KB")


def stored_row(row: Row) -> dict[str, Any]:
    """What the file holds of a row; what is left out is what reading it fills in."""
    values = row.stored() | {"config": row.config.changed()}
    values |= {"confusion": row.confusion, "test_hits": row.test_hits}
    return {key: value for key, value in values.items() if value is not None}


if __name__ == "__main__":
    main()
