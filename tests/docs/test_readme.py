"""The README: its first screen, pictures, links on a package index, and the change that ``init`` makes."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from patch_algorithm.planning.init_config import InitOptions, rewrite
from tests.planning.stock import MPT_1B

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_first_screen_says_what_it_is_for_whom_and_how_to_see_it() -> None:
    screen = README.partition("## In your own config")[0]
    order = ["badge-python.svg", "<picture>", "**Is it for you?**", "## See it work"]
    assert sorted(order, key=screen.index) == order
    console = re.search(r"^```console\n(.*?)^```$", screen, re.M | re.S)
    assert console
    assert console[1].splitlines() == [
        "pip install uv && uv run composer train.py yamls/quickstart.yaml",
        "uv run pytest -n 2",
    ]
    assert len(screen.splitlines()) < 70


def test_the_change_that_it_shows_is_the_one_that_init_makes() -> None:
    shown = re.search(r"^```diff\n(.*?)^```$", README, re.M | re.S)
    assert shown
    made = rewrite(MPT_1B, InitOptions()).diff("stock", "new").splitlines()[2:]
    changed = [line.partition("  # <-")[0] for line in made if line[:1] in "+-"]
    assert [line for line in shown[1].splitlines() if line[:1] in "+-"] == changed


def test_every_picture_is_there() -> None:
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"|!\[[^]]*\]\(([^)]+)\)', README)
    assert len(pictures) >= 9
    for one in pictures:
        assert (ROOT / (one[0] or one[1])).is_file(), one


@pytest.fixture
def build_hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``hatch_build.py``; hatchling itself is where packages are built, and not here."""
    interface = SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "hatch_build", raising=False)
    return import_module("hatch_build")


def test_on_a_package_index_every_link_is_absolute(build_hook: ModuleType) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    urls = dict(re.findall(r'^(\w+) = "(https://[^"]+)"$', project, re.M))
    hook = SimpleNamespace(root=str(ROOT))
    metadata: dict[str, object] = {"urls": urls}
    build_hook.AbsoluteLinks.update(hook, metadata)
    text = metadata["readme"]["text"]  # pyright: ignore
    links = re.findall(r'\]\(([^)]+)\)|(?:src|srcset|href)="([^"]+)"', text)
    assert len(links) > 40
    for one in links:
        link = one[0] or one[1]
        assert link.startswith("https://"), link
        kind = re.fullmatch(rf"{urls['Repository']}/(?:raw|blob)/main/([^#]+)(?:#.*)?", link)
        assert kind is None or (ROOT / kind[1]).exists(), link
