"""The site in a headless Chromium: search, themes, three ways through it, and nothing off the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.browser import CHROMIUM, Browser, browser, served

pytest.importorskip("websockets.sync.client")
pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

WIDE, NARROW = 1400, 400
_OUTSIDE = """
[...document.querySelectorAll('article pre, article .table-wrapper, article dl, article img')]
    .filter(e => e.offsetParent && %s)
    .map(e => e.tagName + ': ' + e.textContent.trim().slice(0, 60))
"""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as at:
        yield at


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        found.size(WIDE)
        yield found


def names_of_pages(site: Path) -> list[str]:
    return sorted(path.name for path in site.glob("*.html"))


def test_the_search_finds_ratio(tab: Browser, address: str) -> None:
    tab.size(WIDE)
    tab.open(f"{address}/index.html")
    tab.evaluate("document.querySelector('.sidebar-search').value = 'ratio'")
    tab.evaluate("document.querySelector('.sidebar-search-container').submit()")
    tab.wait("/found \\d+ page/.test(document.querySelector('#search-results')?.textContent ?? '')")
    tab.wait("document.querySelectorAll('#search-results li').length > 3")
    found = tab.evaluate("[...document.querySelectorAll('#search-results li > a')].map(a => a.href)")
    assert any("choosing.html" in target for target in found)
    assert any("configuration.html" in target for target in found)


def test_the_theme_is_switched_and_kept(tab: Browser, address: str) -> None:
    tab.open(f"{address}/index.html")
    tab.evaluate("localStorage.clear()")
    tab.open(f"{address}/index.html")
    background = "getComputedStyle(document.body).backgroundColor"
    seen = set()
    for _ in range(3):
        tab.evaluate("document.querySelector('.theme-toggle').click()")
        seen.add((tab.evaluate("document.body.dataset.theme"), tab.evaluate(background)))
    assert {theme for theme, _ in seen} == {"light", "dark", "auto"}
    assert len({color for _, color in seen}) == 2
    chosen = tab.evaluate("document.body.dataset.theme")
    tab.open(f"{address}/quickstart.html")
    assert tab.evaluate("document.body.dataset.theme") == chosen


@pytest.mark.parametrize(
    "way",
    [
        ["quickstart.html", "your-config.html", "checks.html", "errors.html"],
        ["plan.html", "choosing.html", "schedules.html"],
        ["how-it-works.html", "compatibility.html"],
    ],
    ids=["newcomer", "practitioner", "researcher"],
)
def test_the_main_ways_are_linked_in_the_text(tab: Browser, address: str, way: list[str]) -> None:
    tab.open(f"{address}/index.html")
    for page in way:
        tab.click(f"document.querySelector('article a[href^=\"{page}\"]')")
        assert tab.evaluate("location.pathname") == f"/{page}"


def test_nothing_scrolls_sideways_on_a_wide_screen(tab: Browser, address: str, site: Path) -> None:
    tab.size(WIDE)
    check = _OUTSIDE % "e.scrollWidth > e.clientWidth + 1 && e.tagName !== 'DL'"
    wrong = {}
    for page in names_of_pages(site):
        tab.open(f"{address}/{page}")
        if found := tab.evaluate(check):
            wrong[page] = found
    assert not wrong, wrong


@pytest.mark.parametrize("page", ["index", "plan", "cli", "compatibility"])
def test_between_wide_and_narrow_the_page_itself_does_not_scroll(
    tab: Browser, address: str, page: str
) -> None:
    tab.size(1100)
    tab.open(f"{address}/{page}.html")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_home_shows_the_picture_for_this_screen_and_theme(
    tab: Browser, address: str, width: int, theme: str
) -> None:
    tab.size(width)
    tab.open(f"{address}/index.html")
    tab.evaluate(f"localStorage.setItem('theme', '{theme}')")
    tab.open(f"{address}/index.html")
    shown = "[...document.querySelectorAll('article img')].filter(e => e.offsetParent).map(e => e.src)"
    found = tab.evaluate(shown)
    tab.evaluate("localStorage.clear()")
    expected = f"hero-narrow-{theme}.svg" if width == NARROW else f"hero-{theme}.svg"
    assert [address.rpartition("/")[2] for address in found] == [expected]


def test_nothing_starts_off_a_narrow_screen(tab: Browser, address: str, site: Path) -> None:
    tab.size(NARROW)
    check = _OUTSIDE % "(r => r.left < 0 || r.left >= innerWidth - 20)(e.getBoundingClientRect())"
    wrong: dict[str, Any] = {}
    for page in names_of_pages(site):
        tab.open(f"{address}/{page}")
        if found := tab.evaluate(check):
            wrong[page] = found
        if tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wrong[f"{page} itself"] = tab.evaluate("document.documentElement.scrollWidth")
    assert not wrong, wrong
