"""Commands of studies and benchmarks, a line each on stdin -> how long all of them will take.

    printf '%s\\n' "study run logistic-lr" "benchmark --all" | python scripts/forecast.py

A run that several of them have is counted once; each cost is timed once and remembered.
"""

import shlex
import sys

from stl10bench.cli.main import app
from stl10bench.core.errors import BenchError
from stl10bench.studies.progress import Forecast, duration


def main() -> None:
    """Print the runs of each command, and the sum."""
    left: dict[str | None, float] = {}
    for line in sys.stdin:
        print(f"== {line.strip()}", flush=True)
        forecasts: list[Forecast] = app([*shlex.split(line), "--dry-run"], standalone_mode=False)
        left |= {each.run: each.seconds or 0.0 for each in forecasts if each.is_left}
    print(f"Estimated time left for all: {duration(sum(left.values()))}, one run at a time")


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"error: {error}")
