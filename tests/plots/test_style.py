"""Figures as files: their formats, their bytes, and that text in them is only text."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image

from stl10bench.core.errors import StorageError, UsageError
from stl10bench.plots import style
from stl10bench.plots.style import Sheet, figure_style

HOSTILE = (
    "[red]x[/red]",
    "<script>alert(1)</script>",
    "$\\frac{$",
    "_hidden",
    "a\nb\x1b[2J",
    "%s&",
)


@figure_style()
def sheet(*texts: str) -> Sheet:
    page = Sheet(240, 20 * len(texts) + 40)
    page.image(3, 5, np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3), scale=2)
    for number, text in enumerate(texts):
        page.text(120, 30 + 20 * number, text, width=200)
    return page


def test_an_image_is_painted_pixel_by_pixel(tmp_path: Path) -> None:
    style.save(sheet("name").finish(), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.size == (240, 60)
        pixels = np.asarray(opened.convert("RGB"))
    expected = np.arange(48).reshape(4, 4, 3).repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(pixels[5:13, 3:11], expected)
    assert (pixels[:5] == 255).all()


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG")])
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"a{suffix}"
    style.save(sheet("name").finish(), path)
    with Image.open(path) as opened:
        opened.load()
        assert (opened.format, opened.size) == (kind, (240, 60))


def test_svg_is_xml_of_the_same_size_with_the_image_in_it(tmp_path: Path) -> None:
    style.save(sheet("name").finish(), tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.get("viewBox") == f"0 0 {240 * 0.72:.1f} {60 * 0.72:.1f}"
    assert len(list(root.iter("{http://www.w3.org/2000/svg}image"))) == 1


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt", ".png"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"must end in \.png, \.svg or \.jpg"):
        style.check_output(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".jpg"])
def test_the_same_figure_has_the_same_bytes_whatever_the_users_settings(
    tmp_path: Path, suffix: str
) -> None:
    contents = []
    for size in (10, 31):
        settings = {
            "font.size": size,
            "svg.hashsalt": str(size),
            "figure.facecolor": f"C{size}",
        }
        with matplotlib.rc_context(settings):
            style.save(sheet("name").finish(), path := tmp_path / f"{size}{suffix}")
            assert matplotlib.rcParams["font.size"] == size, "the user's settings come back"
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    page = sheet(*HOSTILE)
    written = [text.get_text() for text in page.figure.findobj(Text)]
    assert written == [*HOSTILE[:4], "a b [2J", "%s&"]
    assert not any(text.get_parse_math() for text in page.figure.findobj(Text))
    figure = page.finish()
    for suffix in (".png", ".svg"):  # $\frac{$ would be an error, were it a formula
        style.save(figure, tmp_path / f"a{suffix}")
    tags = {element.tag for element in ElementTree.parse(tmp_path / "a.svg").iter()}
    assert not any("script" in str(tag) for tag in tags)


@given(st.text(max_size=60), st.integers(20, 300))
def test_text_is_cut_to_its_width_and_only_where_it_is_longer(text: str, width: int) -> None:
    cut = style.fitted(text, width, 9)
    if cut != style.fitted(text, 1e9, 9):
        assert cut.endswith("…")
        assert text.startswith(cut[:1]) or not text[:1].isprintable() or cut == "…"
    assert len(cut) <= max(len(text), 1)


def test_a_long_name_keeps_its_beginning() -> None:
    assert style.fitted("W" * 500, 60, 9).strip("W") == "…"
    assert 3 <= len(style.fitted("W" * 500, 60, 9)) <= 8
    assert len(style.fitted("i" * 500, 60, 9)) > 12


def test_a_picture_beyond_the_renderers_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="100x70000 pixels"):
        Sheet(100, 70_000)


def test_a_picture_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a\.png"):
        style.save(sheet("x").finish(), tmp_path / "file" / "a.png")


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("matplotlib", ["visualize", "samples"]),
        ("matplotlib", ["plot", "x"]),
        ("sklearn", ["visualize", "embedding", "none.safetensors"]),
    ],
)
def test_a_missing_package_is_an_error_that_names_the_extra(
    package: str, arguments: list[str]
) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['stl10bench', *{arguments!r}]\n"
        "from stl10bench.cli.main import main\nmain()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"needs {package}: pip install 'stl10bench[plots]'" in ended.stderr
