"""The report page in a real browser: it opens, sorts, fits a phone, and runs its own code alone."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.reports import add_run, leave_study

from stl10bench.data.stl10 import open_dataset
from stl10bench.report.build import build_report
from stl10bench.report.html import html_document, html_page
from stl10bench.report.study_document import build_study_document
from stl10bench.studies import parse

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs a browser: apt-get install chromium chromium-driver (.ci/run tries to)",
)
PAPERS = {"A4": (8.27, 11.69), "Letter": (8.5, 11.0)}  # inches
MARGINS = 2 * 15 / 25.4
LONG = "a_class_with_a_name_that_has_no_place_to_break_" * 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that logs what it says and what it asks for."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of five runs of four settings, with names that want to be wide."""
    folder = tmp_path_factory.mktemp("page")
    runs = (("mlp-aa", 1.0, 0), ("mlp-bb", 1.1, 1), ("cnn-cc", 2.5, 0))
    for name, strength, seed in runs:
        add_run(folder / "runs", name, strength, seed=seed, names=(LONG, "bee", "cow"))
    add_run(folder / "runs", "logistic-dd", 0.5, macs=1000, latency_ms=0.1, model=LONG, cpu=LONG)
    add_run(folder / "runs", "vit-ee", 2.0, macs=10**9, latency_ms=None)
    text = html_page("A report", build_report(folder / "runs", [], data_dir=None))
    (folder / "report.html").write_text(text, encoding="utf-8")
    return folder / "report.html"


def open_page(
    browser: Any, path: Path, *, width: int = 1280, theme: str = "light", height: int = 900
) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())


def run(browser: Any, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def column(browser: Any, name: str) -> list[str]:
    """The cells below a heading of the results, from top to bottom."""
    script = """
      const table = document.querySelector("#results table");
      const heads = [...table.tHead.rows[0].cells];
      const at = heads.findIndex((head) => head.textContent === arguments[0]);
      return [...table.tBodies].map((body) => body.rows[0].cells[at].textContent);
    """
    cells: list[str] = browser.execute_script(script, name)
    return cells


def heading(browser: Any, name: str) -> Any:
    heads = browser.find_elements("css selector", "#results thead button")
    return next(head for head in heads if head.text.split("\n")[0].startswith(name))


def test_it_opens_from_a_file_says_nothing_and_asks_for_nothing(browser: Any, path: Path) -> None:
    open_page(browser, path)
    assert run(browser, "document.title") == "A report"
    assert browser.get_log("browser") == []
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    requested = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requested if not url.startswith("data:")] == [path.as_uri()]


def test_a_click_on_a_heading_sorts_and_a_second_one_reverses_the_order(
    browser: Any, path: Path
) -> None:
    open_page(browser, path)
    shown = column(browser, "test accuracy [95 %]")
    assert shown == sorted(shown, reverse=True)
    heading(browser, "MACs").click()
    assert column(browser, "MACs") == ["1k", "6.46M", "6.46M", "1G", "-", "-"]
    assert heading(browser, "MACs").find_element("xpath", "..").get_attribute("aria-sort") == (
        "ascending"
    )
    heading(browser, "MACs").click()
    assert column(browser, "MACs") == ["1G", "6.46M", "6.46M", "1k", "-", "-"]
    sorted_by = browser.find_elements("css selector", "#results [aria-sort]")
    assert [head.text for head in sorted_by] == ["MACs"]
    assert sorted_by[0].get_attribute("aria-sort") == "descending"
    heading(browser, "model").click()
    assert column(browser, "model")[1:3] == ["chance (baseline)", "cnn"]


def test_the_keyboard_sorts_and_details_move_with_its_line(browser: Any, path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, path)
    below = """
      const bodies = [...document.querySelectorAll("#results > .scroll > table > tbody")];
      return bodies.map((b) => [b.rows[0].cells[0].textContent, (b.rows[1] || b).textContent]);
    """
    before = dict(browser.execute_script(below))
    heading(browser, "test loss").send_keys(Keys.ENTER)
    assert heading(browser, "test loss").find_element("xpath", "..").get_attribute("aria-sort")
    assert dict(browser.execute_script(below)) == before
    assert "mlp-bb" in before["mlp"]


def test_the_theme_follows_the_system_until_one_is_chosen(browser: Any, path: Path) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    open_page(browser, path, theme="light")
    light = run(browser, colour)
    open_page(browser, path, theme="dark")
    dark = run(browser, colour)
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (light, dark)]
    assert brightness[0] > 700
    assert brightness[1] < 100
    browser.find_element("css selector", "label:has(#theme-1)").click()
    assert run(browser, colour) == light
    browser.find_element("css selector", "label:has(#theme-2)").click()
    assert run(browser, colour) == dark


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_is_readable_on_its_ground(browser: Any, path: Path, theme: str) -> None:
    """WCAG 2.1's contrast ratio of the colours is 4.5 or more."""
    open_page(browser, path, theme=theme)
    texts = browser.execute_script("""
      const canvas = document.createElement("canvas").getContext("2d");
      const paint = (...colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const paper = getComputedStyle(document.body).backgroundColor;
      const shown = [...document.querySelectorAll("p, td, th, summary, a, small, code, svg text")];
      return shown.map((element) => {
        const style = getComputedStyle(element);
        const ground = getComputedStyle(element.closest("td, pre, body"));
        const ink = element.closest("svg") ? style.fill : style.color;
        return [element.textContent.slice(0, 30), paint(paper, ground.backgroundColor),
                paint(paper, ground.backgroundColor, ink)];
      });
    """)
    assert len(texts) > 200
    assert [text for text, ground, ink in texts if contrast(ground, ink) < 4.5] == []


def contrast(first: list[int], second: list[int]) -> float:
    def luminance(rgb: list[int]) -> float:
        parts = [c / 255 for c in rgb]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [320, 360, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, path: Path, width: int) -> None:
    open_page(browser, path, width=width)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
    assert run(browser, "window.innerWidth") == width
    assert run(browser, "document.documentElement.scrollWidth") <= width


def test_a_phone_shows_a_lines_accuracy_and_loss_without_scrolling(
    browser: Any, path: Path
) -> None:
    open_page(browser, path, width=360)
    right = """
      [...document.querySelectorAll("#results > .scroll > table > tbody > tr:first-child")]
        .map((line) => line.cells[2].getBoundingClientRect().right)
    """
    assert max(run(browser, right.strip())) <= 360


def test_a_figure_is_drawn_for_the_width_and_for_the_chosen_cost(browser: Any, path: Path) -> None:
    shown = """
      [...document.querySelectorAll(".tabs svg")].filter((s) => s.getBoundingClientRect().width)
        .map((s) => [s.querySelector("title").textContent, s.viewBox.baseVal.width > 400])
    """
    open_page(browser, path)
    assert run(browser, shown.strip()) == [["Test accuracy against MACs", True]]
    browser.find_element("xpath", "//div[@class='tabs']//span[.='latency']").click()
    assert run(browser, shown.strip()) == [["Test accuracy against latency", True]]
    open_page(browser, path, width=360)
    assert run(browser, shown.strip()) == [["Test accuracy against MACs", False]]


def test_markup_that_got_in_after_all_runs_nothing_and_fetches_nothing(
    browser: Any, path: Path, tmp_path: Path
) -> None:
    hostile = (
        "<script>window.injected = 1</script><img src=x onerror='window.injected = 2'>"
        "<img src='https://example.invalid/x.png'><p id=styled style='position:fixed'>x</p>"
        "<iframe srcdoc='<script>parent.injected = 3</script>'></iframe>"
        "<style>body{display:none}</style>"
    )
    changed = path.read_text(encoding="utf-8").replace("<main>", f"<main>{hostile}")
    (tmp_path / "changed.html").write_text(changed, encoding="utf-8")
    open_page(browser, tmp_path / "changed.html")
    messages = [entry["message"] for entry in browser.get_log("browser")]
    assert run(browser, "window.injected === undefined")
    assert run(browser, "getComputedStyle(document.getElementById('styled')).position") == "static"
    assert run(browser, "getComputedStyle(document.body).display") == "block"
    assert sum("Content Security Policy" in line for line in messages) >= 4
    heading(browser, "MACs").click()
    assert column(browser, "MACs")[0] == "1k"


def test_what_is_folded_is_left_out_on_paper_and_the_rest_is_light(
    browser: Any, path: Path, tmp_path: Path
) -> None:
    open_page(browser, path, theme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert run(browser, "getComputedStyle(document.documentElement).colorScheme") == "light"
    assert run(browser, "getComputedStyle(document.querySelector('nav')).display") == "none"
    for part in ("#results details", "#confusion details:not([open])"):
        folded = f"document.querySelector('{part}').getBoundingClientRect()"
        assert run(browser, f"{folded}.height") == 0
    assert run(browser, "document.querySelector('#confusion table').offsetHeight") > 10
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_browser_is_the_one_that_is_named() -> None:
    ended = subprocess.run([str(DRIVER), "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("ChromeDriver")


@pytest.fixture(scope="module")
def document(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document of all nine studies, whole, with one seed."""
    folder = tmp_path_factory.mktemp("document")
    data = open_dataset(data_dir, verify=False, stamp=False).fingerprint
    for name in parse.REPORT:
        leave_study(folder / "runs", data, name)
    built = build_study_document(folder / "runs", data_dir=data_dir, suffix=".svg")
    path = folder / "study.html"
    path.write_text(html_document("Five classifiers", "A. Student", built), encoding="utf-8")
    return path


def pages_of(browser: Any, width: float = 8.27, height: float = 11.69) -> int:
    """The pages of the open page on paper of that size, in inches."""
    size = {"paperWidth": width, "paperHeight": height, "preferCSSPageSize": False}
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", size)["data"])
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def test_the_document_has_room_for_its_tables_and_no_pages_for_parts_without_runs(
    browser: Any, tmp_path: Path
) -> None:
    for model in ("cnn", "mlp", "logistic"):
        add_run(tmp_path / "runs", f"{model}-a", 1.0)
    built = build_study_document(tmp_path / "runs", data_dir=tmp_path, suffix=".svg")
    path = tmp_path / "study.html"
    path.write_text(html_document("Five classifiers", "A. Student", built), encoding="utf-8")
    open_page(browser, path, width=1100)
    cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert run(browser, f"{cut}.length") == 0
    for width in (1100, 800, 400):
        open_page(browser, path, width=width)
        assert run(browser, "document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert pages_of(browser) <= 6, "the four parts without runs share pages"


@pytest.mark.faults  # nine studies, 92 runs, 13 figures
@pytest.mark.parametrize("paper", PAPERS)
def test_the_document_of_the_whole_study_prints_on_few_pages_at_its_size(
    browser: Any, document: Path, paper: str
) -> None:
    width, height = PAPERS[paper]
    open_page(browser, document, width=int(96 * (width - MARGINS)))
    assert sideways_on_paper(browser) == 0
    assert 8 <= pages_of(browser, width, height) <= 15


def sideways_on_paper(browser: Any) -> int:
    """By how many pixels a page on paper is too wide: Chromium would print all of it smaller."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    wide = run(browser, "document.documentElement.scrollWidth - window.innerWidth")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    return max(0, int(wide))


@pytest.mark.parametrize("paper", PAPERS)
def test_no_table_of_the_page_is_wider_than_the_paper(browser: Any, path: Path, paper: str) -> None:
    open_page(browser, path, width=int(96 * (PAPERS[paper][0] - MARGINS)))
    assert sideways_on_paper(browser) == 0
