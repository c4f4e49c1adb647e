"""Figures as files: their formats, their bytes, and that text in them is only text."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from helpers.forks import Forks
from helpers.logs import make_run
from helpers.pictures import check_texts
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from stl10bench.core.errors import StorageError, UsageError
from stl10bench.plots import style
from stl10bench.plots.curves import curves
from stl10bench.plots.embedding import scatter
from stl10bench.plots.galleries import Section, Tile, Words, gallery
from stl10bench.plots.style import Sheet, figure_style
from stl10bench.results import history

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
    page = Sheet(360, 20 * len(texts) + 40)
    page.image(3, 5, np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3), scale=2)
    for number, text in enumerate(texts):
        page.text(180, 30 + 20 * number, text, width=340)
    return page


def test_an_image_is_painted_pixel_by_pixel(tmp_path: Path) -> None:
    style.save(sheet("name").finish(""), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.size == (360, 60)
        pixels = np.asarray(opened.convert("RGB"))
    expected = np.arange(48).reshape(4, 4, 3).repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(pixels[5:13, 3:11], expected)
    assert (pixels[:5] == 255).all()


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG")])
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"a{suffix}"
    style.save(sheet("name").finish(""), path)
    with Image.open(path) as opened:
        opened.load()
        assert (opened.format, opened.size) == (kind, (360, 60))


def test_svg_is_xml_of_the_same_size_with_the_image_in_it(tmp_path: Path) -> None:
    style.save(sheet("name").finish(""), tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.get("viewBox") == f"0 0 {360 * 0.48:.1f} {60 * 0.48:.1f}"
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
            style.save(sheet("name").finish(""), path := tmp_path / f"{size}{suffix}")
            assert matplotlib.rcParams["font.size"] == size, "the user's settings come back"
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    figure = sheet(*HOSTILE).finish("")
    written = [text.get_text() for text in figure.texts]
    assert written == [*HOSTILE[:4], "a b [2J", "%s&"]
    assert not any(text.get_parse_math() for text in figure.texts)
    for suffix in (".png", ".svg"):  # $\frac{$ would be an error, were it a formula
        style.save(figure, tmp_path / f"a{suffix}")
    tags = {element.tag for element in ElementTree.parse(tmp_path / "a.svg").iter()}
    assert not any("script" in str(tag) for tag in tags)


@given(st.text(max_size=60), st.integers(20, 300))
def test_text_is_cut_to_its_width_and_only_where_it_is_longer(text: str, width: int) -> None:
    cut = style.fitted(text, width / 100, 9)
    if cut != style.fitted(text, 1e9, 9):
        assert cut.endswith("…")
        assert text.startswith(cut[:1]) or not text[:1].isprintable() or cut == "…"
    assert len(cut) <= max(len(text), 1)


def test_a_long_name_keeps_its_beginning() -> None:
    assert style.fitted("W" * 500, 0.6, 9).strip("W") == "…"
    assert 3 <= len(style.fitted("W" * 500, 0.6, 9)) <= 8
    assert len(style.fitted("i" * 500, 0.6, 9)) > 12


@given(st.text(max_size=60), st.integers(1, 4))
@example("000000000000I\N{NO-BREAK SPACE}", 2)
def test_wrapped_lines_fit_and_lose_nothing_but_spaces(text: str, most: int) -> None:
    lines = style.wrapped(text, 1.0, most=most)
    assert 1 <= len(lines) <= most
    if not lines[-1].endswith("…"):
        assert "".join(lines).replace(" ", "") == style.clean(text).replace(" ", "")


def test_a_picture_beyond_the_renderers_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="100x70000 pixels"):
        Sheet(100, 70_000)


def test_a_picture_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a\.png"):
        style.save(sheet("x").finish(""), tmp_path / "file" / "a.png")


def test_a_missing_package_is_an_error_that_names_the_extra(forks: Forks) -> None:
    arguments = ("visualize", "embedding", "none.safetensors")
    ended = forks.run(*arguments, before="import sys; sys.modules['sklearn'] = None")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "needs sklearn: pip install 'stl10bench[plots]'" in ended.err


def test_no_text_of_curves_an_embedding_or_a_gallery_is_cut_or_lies_on_another(
    tmp_path: Path,
) -> None:
    names = [f"english_springer_{number}" for number in range(12)]
    runs = [make_run(tmp_path, f"{name}-and-a-long-hash") for name in names[:10]]
    points = np.zeros((12, 2))
    title = "A title that is much longer than the figure is wide, and that must not be cropped " * 2
    projected = {"PCA (0.53 of the variance)": points, "t-SNE (perplexity 4)": points}
    black = Tile(np.zeros((192, 192, 3), dtype=np.uint8), (names[0], "0.98", f"true: {names[1]}"))
    figures = [
        curves([history.read(run) for run in runs]),
        scatter(title, projected, np.arange(12), names),
        gallery(Words(title, title), [Section("right", [black] * 2), Section("wrong", [black])]),
    ]
    for figure in figures:
        check_texts(figure)
