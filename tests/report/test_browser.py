"""The page in a real headless Chromium: quiet, still, legible and whole on a phone, on a screen and on paper."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.evidence import Verdict
from deploy.report.findings import read_findings
from deploy.report.html import render_html
from deploy.repository.attest import attest
from tests.report.browser import Page, find_browser, open_browser
from tests.report.samples import HOSTILE, bench, rate, slo, tell, tune, unsafe_story

PHONE, DESK, PAPER = 360, 1200, 703
# WCAG 2.2, 1.4.3: the contrast of text with what lies behind it.
CONTRAST = 4.5
SMALLEST_TYPE = 9.5

# Everything that reaches past the edge of the page, but for what scrolls inside its own box. The width is that of the
# screen: a phone zooms out of a page that is too wide, and then calls the wider page its own width.
OVERFLOWING = """
[...document.querySelectorAll("body *")]
    .filter(element => !element.closest(".scroll > *") && element.getBoundingClientRect().right > WIDTH + 1)
    .map(element => element.tagName + "." + element.getAttribute("class"))
"""

# The worst contrast, with its text: colours are those computed, the ground is that of the nearest that has one.
FAINTEST = """
(() => {
    const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
    const light = colour => numbers(colour).slice(0, 3)
        .map(value => value / 255).map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = element => {
        for (let each = element; each; each = each.parentElement) {
            const colour = getComputedStyle(each).backgroundColor;
            if ((numbers(colour)[3] ?? 1) > 0) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    let worst = [99, ""];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
        if (!text || element.tagName === "STYLE") continue;
        const style = getComputedStyle(element);
        const [one, two] = [light(element.closest("svg") ? style.fill : style.color), light(ground(element))];
        const contrast = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
        if (contrast < worst[0]) worst = [contrast, text];
    }
    return worst;
})()
"""

SMALLEST = """
Math.min(...[...document.querySelectorAll("svg text")].map(text => {
    const matrix = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b);
}))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser.new_page()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A version that passed everything, and an unsafe one that failed under load, with hostile text in it."""
    folder = tmp_path_factory.mktemp("reports")
    good, bad = tell(folder / "good"), tell(folder / "bad", unsafe_story())
    for version, run in ((good, slo()), (bad, slo(Verdict.FAIL, rate=260, errors={HOSTILE * 9: 7}))):
        attest(version, "rate", rate())
        attest(version, "bench", bench(version))
        attest(version, "tune", tune(version))
        attest(version, "slo", run)
    paths = (folder / "good.html", folder / "bad.html")
    for path, version in zip(paths, (good, bad), strict=True):
        path.write_bytes(render_html(read_findings(version)))
    return paths


def faults(page: Page, path: Path) -> dict[str, Any]:
    """What is wrong with the page as it is now open; empty where nothing is."""
    contrast, faintest = page.evaluate(FAINTEST)
    found = {
        "requests": [url for url in page.requests if url != path.as_uri()],
        "complaints": page.complaints,
        "width": page.evaluate(f"document.documentElement.scrollWidth - {page.width}"),
        "overflowing": page.evaluate(OVERFLOWING.replace("WIDTH", str(page.width))),
        "faint": f"{contrast:.2f} of {faintest}" if contrast < CONTRAST else "",
        "small": max(0.0, SMALLEST_TYPE - (page.evaluate(SMALLEST) or SMALLEST_TYPE)),
    }
    return {name: fault for name, fault in found.items() if fault}


def test_the_page_is_sound_on_a_phone_and_a_screen_in_light_and_dark(page: Page, reports: tuple[Path, Path]) -> None:
    for path in reports:
        for width in (PHONE, DESK):
            for dark in (False, True):
                page.resize(width, 800, dark=dark)
                page.open(path)
                assert faults(page, path) == {}, f"{path.name}, {width} px, dark: {dark}"
                assert page.screenshot().startswith(b"\x89PNG")
    # A colour for dark that no one sees would pass the loop above: paper and ink must have changed places.
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 27)"


def test_on_paper_it_is_light_complete_and_within_the_margins(page: Page, reports: tuple[Path, Path]) -> None:
    for path in reports:
        page.resize(PAPER, 1000, dark=True)
        page.open(path)
        page.send("Emulation.setEmulatedMedia", media="print")
        assert faults(page, path) == {}, path.name
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("document.querySelector('nav').checkVisibility()") is False
        clipped = (
            "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1).length"
        )
        assert page.evaluate(clipped) == 0
        assert len(re.findall(rb"/Type\s*/Page\b", page.pdf())) >= 3
        page.send("Emulation.setEmulatedMedia", media="")


def test_tables_that_scroll_can_be_reached_by_keyboard_and_have_names(page: Page, reports: tuple[Path, Path]) -> None:
    page.resize(PHONE, 800)
    page.open(reports[1])
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    )
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    by_role: dict[str, list[str]] = {}
    for node in nodes:
        by_role.setdefault(node.get("role", {}).get("value"), []).append(node.get("name", {}).get("value", ""))
    tables = page.evaluate("document.querySelectorAll('table').length")
    assert len(by_role["table"]) == tables
    assert len(by_role["image"]) == page.evaluate("document.querySelectorAll('figure').length")
    assert all(by_role["table"])
    assert all(by_role["image"])
    assert all(by_role["region"])
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(box => box.tabIndex === 0)")


def test_each_fault_would_be_seen(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "faulty.html"
    path.write_text(
        "<!DOCTYPE html><meta name=viewport content='width=device-width'><script>console.error('x'); absent()</script>"
        "<img src='http://127.0.0.1:9/x.png'><p style='color: #999; background: #fff'>faint</p>"
        "<div style='width: 900px'>wide</div><svg viewBox='0 0 100 10' width=50><text font-size=8>small</text></svg>"
    )
    page.resize(PHONE, 800)
    page.open(path)
    assert set(faults(page, path)) == {"requests", "complaints", "width", "overflowing", "faint", "small"}


def test_a_machine_without_a_browser_fails_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="to do: `make browser`"):
        find_browser()
