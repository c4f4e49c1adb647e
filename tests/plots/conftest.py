"""The command line, in a folder of its own, for all tests of figures."""

from pathlib import Path

import pytest
from helpers.entry import Entry


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Entry:
    monkeypatch.chdir(tmp_path)
    return Entry(monkeypatch, capsys)
