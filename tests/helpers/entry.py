"""The command line as a function, for tests of single commands."""

import sys
from typing import Any, NamedTuple

import pytest
from typer.main import get_command

from stl10bench.cli.main import COMMANDS, app, main


def leaves() -> dict[str, Any]:
    """Every command that is no group and not hidden, as the command line loads it."""
    group: Any = get_command(app)
    commands = {}
    for name in COMMANDS:
        _, command, _ = group.resolve_command(group.make_context("stl10bench", [name]), [name])
        nested = getattr(command, "commands", {})
        commands |= {f"{name} {sub}": leaf for sub, leaf in nested.items() if not leaf.hidden}
        if not nested:
            commands[name] = command
    return commands


class Ended(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


class Entry:
    """Calls the real entry point in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["stl10bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = self._capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)
