"""The report in headless Chromium: no error, no request, tables that sort, plots that respond."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_page import SECTIONS, page, runs  # noqa: F401  (fixtures)

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
QUIET = ["no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync"]


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=[f"--{option}" for option in QUIET])
        yield launched
        launched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_in_a_browser(browser: Any, page: str, tmp_path: Path, scheme: str) -> None:  # noqa: F811
    file = tmp_path / "report.html"
    file.write_text(page)
    view = browser.new_page(color_scheme=scheme, viewport={"width": 1400, "height": 900})
    errors, requests = [], []
    view.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(file.as_uri())
    view.wait_for_selector("#curves .main-svg")

    assert [section.get_attribute("id") for section in view.query_selector_all("section")] == SECTIONS
    assert all(section.is_visible() for section in view.query_selector_all("section"))

    def column(n: int) -> list[float]:
        cells = view.query_selector_all(f"#networks td:nth-child({n})")
        return [float(cell.get_attribute("data-key")) for cell in cells]

    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert view.evaluate(overflow) <= 0, "nothing is wider than the page"
    head = view.locator("#networks th").nth(1)
    unsorted = column(2)
    head.click()
    assert column(2) == sorted(unsorted, reverse=True)
    head.click()
    assert column(2) == sorted(unsorted)
    view.locator("#networks th").first.click()
    names = [cell.inner_text() for cell in view.query_selector_all("#networks td:first-child")]
    assert names == ["resnet14", "resnet8, kd(kd_weight=1)", "resnet8, kd", "resnet8, hkd+kd", "resnet8"]

    axis = view.locator("#networks .xtitle")
    assert axis.text_content() == "million parameters"
    view.locator("#networks .updatemenu-button", has_text="latency").click()
    assert axis.text_content() == "latency of an image (ms)"

    lines = view.locator("#curves .scatterlayer .trace .js-line")
    shown = lines.count()
    view.locator("#curves .legendtoggle").first.click()
    view.wait_for_function(f"document.querySelectorAll('#curves .scatterlayer .trace .js-line').length < {shown}")

    ground, ink = (view.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert (sum(_rgb(ground)) < sum(_rgb(ink))) == (scheme == "dark")
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    if folder := os.environ.get("HKD_SCREENSHOTS"):
        view.screenshot(path=str(Path(folder) / f"report-{scheme}.png"), full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_on_a_telephone(browser: Any, page: str, tmp_path: Path, scheme: str) -> None:  # noqa: F811
    file = tmp_path / "report.html"
    file.write_text(page)
    view = browser.new_page(color_scheme=scheme, viewport={"width": 400, "height": 800})
    view.goto(file.as_uri())
    view.wait_for_selector("#curves .main-svg")
    assert view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    heights = "(rows) => rows.map((row) => row.getBoundingClientRect().height)"
    assert max(view.eval_on_selector_all("#networks tr, #comparison tr, #reproduce tr", heights)) < 200, (
        "no thin columns"
    )
    right = "(parts) => Math.max(...parts.map((part) => part.getBoundingClientRect().right))"
    assert view.eval_on_selector_all(".updatemenu-item-rect", right) <= 400, "every button is in reach"
    assert not view.query_selector_all(".modebar-btn")
    scroll = view.locator("#networks .scroll")
    scroll.evaluate("(part) => { part.scrollLeft = 10000; }")
    assert scroll.evaluate("(part) => part.scrollLeft") > 0
    assert view.locator("#networks td").first.bounding_box()["x"] >= 0, "a row's name stays in view"
    assert not view.locator("#configuration table").first.is_visible()
    view.locator("#configuration summary").first.click()
    assert view.locator("#configuration table").first.is_visible()
    ticks = [tick.text_content() for tick in view.query_selector_all("#curves .xtick text")]
    assert ticks == ["1", "2"]
    if folder := os.environ.get("HKD_SCREENSHOTS"):
        view.screenshot(path=str(Path(folder) / f"report-400-{scheme}.png"), full_page=True)


def _rgb(text: str) -> list[float]:
    return [float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]
