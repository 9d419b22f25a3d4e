"""The built site: its links, what it loads, what its search finds, and how far its pages are from home."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

pytestmark = pytest.mark.site

# What people look for, and the pages that answer it.
NEAR = {
    "my config": "your-config.html",
    "what it costs": "plan.html",
    "when it pays": "study.html",
    "k and ratio": "choosing.html",
    "resume": "resume.html",
    "FSDP": "many-gpus.html",
    "export": "export.html",
    "an error message": "errors.html",
    "FAQ": "faq.html",
    "CLI": "cli.html",
    "YAML": "configuration.html",
    "benchmarks": "benchmarks.html",
}
SEARCHES = {
    "llama": "",
    "license": "license",
    "inference": "export",
    "export": "export",
    "troubleshooting": "errors",
    "fsdp": "many-gpus",
    "wandb": "metrics",
    "slurm": "many-gpus",
}
"""Words that are searched for, and the page that is among those found."""


class Page(HTMLParser):
    """The ids, links and further files of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "shortcut icon", "preload"):
            self.loads.append(given["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {
        str(path.relative_to(site)): Page(path)
        for path in sorted(site.rglob("*.html"))
        if path.parent == site
    }


def inside(page: str, links: list[str]) -> Iterator[tuple[str, str]]:
    """The links that stay on the site: page and anchor."""
    for link in links:
        address, anchor = urldefrag(link)
        if "://" not in address and not address.startswith("mailto:"):
            yield unquote(address) or page, unquote(anchor)


def test_links_and_anchors_lead_somewhere(site: Path, pages: dict[str, Page]) -> None:
    wrong = []
    for name, page in pages.items():
        for target, anchor in inside(name, page.links):
            if not (site / target).is_file():
                wrong.append(f"{name}: {target}")
            elif anchor and target in pages and anchor not in pages[target].ids:
                wrong.append(f"{name}: {target}#{anchor}")
    assert not wrong


def test_nothing_comes_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for address in page.loads:
            assert not re.match(r"(https?:)?//", address), f"{name} loads {address}"
            assert (site / urldefrag(address)[0].partition("?")[0]).is_file(), f"{name}: {address}"


@pytest.mark.parametrize("wanted", NEAR)
def test_two_clicks_from_home(pages: dict[str, Page], wanted: str) -> None:
    reached = {"index.html"}
    for _ in range(2):
        reached |= {
            target for name in reached if name in pages for target, _ in inside(name, pages[name].links)
        }
    assert NEAR[wanted] in reached


@pytest.mark.parametrize("wanted", NEAR)
def test_the_text_of_home_leads_there_not_the_menu_alone(
    site: Path, pages: dict[str, Page], wanted: str
) -> None:
    """In the text of pages: what a reader follows who does not open the menu of a narrow screen."""

    def text_links(name: str) -> set[str]:
        whole = (site / name).read_text("utf-8")
        article = re.search(r"<article.*?</article>", whole, re.S)
        found = re.findall(r'href="([^"#]+\.html)', article[0]) if article else []
        return {unquote(target) for target in found if "://" not in target}

    first = text_links("index.html")
    second = {target for name in first if name in pages for target in text_links(name)}
    assert NEAR[wanted] in first | second


@pytest.mark.parametrize("word", SEARCHES)
def test_searches_find_a_page(site: Path, word: str) -> None:
    from sphinx.search.en import SearchEnglish

    raw = (site / "searchindex.js").read_text("utf-8")
    index = json.loads(raw[raw.index("(") + 1 : raw.rindex(")")])
    stem = SearchEnglish({}).stem(word)
    found: set[int] = set()
    for table in (index["terms"], index["titleterms"]):
        for term in {word, stem} & set(table):
            numbers = table[term]
            found |= set(numbers if isinstance(numbers, list) else [numbers])
    names = {index["docnames"][number] for number in found}
    assert names
    assert not SEARCHES[word] or SEARCHES[word] in names
