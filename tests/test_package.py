"""The package from outside: what it offers by name, and which files it ships."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

import stl10bench

ROOT = Path(__file__).parents[1]


def test_the_public_names_and_no_others_are_listed_and_can_be_had() -> None:
    public = ["__version__", "evaluate", "export", "load", "pretrain", "register", "train"]
    assert dir(stl10bench) == public == stl10bench.__all__
    assert all(hasattr(stl10bench, name) for name in public)
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        _ = stl10bench.tarin


def test_a_source_distribution_holds_files_of_the_root_alone() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all(name.startswith("/") for name in names), "else it means files in any folder"
    if importlib.util.find_spec("hatchling") is None:
        return
    from hatchling.builders.sdist import SdistBuilder

    paths = [file.distribution_path for file in SdistBuilder(str(ROOT)).recurse_included_files()]
    assert "README.md" in paths
    assert not [path for path in paths if path.startswith(("runs", "data", "build"))]
