"""What the README and the documentation say is executed, or compared with the code."""

from __future__ import annotations

import doctest
import inspect
import itertools
import pkgutil
import re
import shlex
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from omegaconf import OmegaConf

import patch_algorithm

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Commands that are no part of the locked environment.
OUTSIDE = {"pip", "uv", "bash", "python"}
# Files that the reader has.
YOURS = {"mpt-1b.yaml"}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    """All fenced blocks of a language; directives such as ```{toctree} are not among them."""
    found = []
    for page in PAGES:
        for fence in re.finditer(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
            if fence[1] == language:
                found.append(Block(page, *fence.groups()))
    return found


def by_page(language: str) -> list[Any]:
    pages = dict.fromkeys(block.page for block in blocks(language))
    return [pytest.param([b for b in blocks(language) if b.page == page], id=page.stem) for page in pages]


def table_rows(page: Path) -> list[list[str]]:
    lines = page.read_text("utf-8").splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]


@pytest.mark.parametrize("examples", by_page("python"))
def test_python_blocks_run(examples: list[Block]) -> None:
    names: dict[str, Any] = {"__name__": "__docs__"}
    for example in examples:
        exec(compile(example.text, str(example.page), "exec"), names)
    if "trainer" in names:
        (algorithm,) = names["trainer"].state.algorithms
        switch = algorithm.switch_point.value
        end = names["trainer"].state.timestamp.batch.value
        assert 0 < switch < end
        assert not algorithm.in_patch_stage
    if examples[0].page.name == "README.md":
        assert f"# {switch} patch steps, {end - switch} token steps" in examples[0].text
        assert names["loss"].count == 2 * 7 * 4


def test_docstring_examples_run() -> None:
    walk = pkgutil.walk_packages(patch_algorithm.__path__, "patch_algorithm.")
    results = [doctest.testmod(import_module(module.name)) for module in walk]
    assert sum(result.attempted for result in results) > 3
    assert not any(result.failed for result in results)


@pytest.mark.parametrize("example", blocks("yaml"), ids=lambda block: block.page.stem)
def test_yaml_blocks_configure_what_they_name(example: Block) -> None:
    from llmfoundry import registry

    cfg = OmegaConf.to_container(OmegaConf.create(example.text))
    assert isinstance(cfg, dict)
    for section, entries in cfg.items():
        if section in ("algorithms", "callbacks", "loggers"):
            for name, arguments in entries.items():
                getattr(registry, section).get(name)(**arguments)
        else:
            kind = {"train_loader": "dataloaders", "eval_loader": "dataloaders"}.get(section, f"{section}s")
            arguments = dict(entries)
            home = getattr(registry, kind).get(arguments.pop("name"))
            inspect.signature(home).bind_partial(**arguments)


def commands() -> list[Any]:
    found = []
    for block in blocks("console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            text = shlex.join(words).replace("'&&'", "&&")
            found += [
                pytest.param(shlex.split(part), id=f"{block.page.stem}: {part.strip()[:50]}")
                for part in text.split("&&")
            ]
    return found


def written() -> set[str]:
    """Files that some command of the pages writes, so that a later one may name them."""
    pairs = [pair for param in commands() for pair in itertools.pairwise(param.values[0])]
    return {after for before, after in pairs if before == "--out"}


@pytest.mark.parametrize("words", commands())
def test_commands_name_what_exists(words: list[str]) -> None:
    if words[:2] == ["uv", "run"]:
        words = words[2:]
        assert entry_points(group="console_scripts", name=words[0]), f"{words[0]} is not installed"
    elif words[0] not in OUTSIDE:
        assert entry_points(group="console_scripts", name=words[0]), f"{words[0]} is not installed"
    for word in words[1:]:
        if re.fullmatch(r"[\w.][\w./-]*\.(py|yaml)|\.ci/run", word) and word not in written() | YOURS:
            assert (ROOT / word).is_file(), f"{word} does not exist"


def of_the_package() -> list[Any]:
    """The pages' commands ``patch-level ...``, without ``uv run``."""
    found = []
    for param in commands():
        words = param.values[0]
        words = words[2:] if words[:2] == ["uv", "run"] else words
        if words[0] == "patch-level":
            found.append(pytest.param(words[1:], id=param.id))
    return found


@pytest.mark.parametrize("words", of_the_package())
def test_commands_of_the_package_have_these_options(words: list[str]) -> None:
    from typer.main import get_command

    from patch_algorithm.cli import app

    command: Any = get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words[0]]
        words = words[1:]
    with command.make_context("patch-level", list(words)):
        pass


NEEDS = {
    "gpu": r"--extra gpu|--device cuda|benchmarks\.gpu --attention|composer -n|composer train.py yamls/mpt",
    "cluster": r"--engine ray",
    "network": r"s3://|EleutherAI/|^pip install|^uv pip install|^uv sync",
}
"""What the commands need that no test has, and by what they are known."""
COUNTED = {"gpu": 4, "cluster": 1, "network": 13}


def test_commands_that_need_more_than_this_machine_are_counted() -> None:
    """These alone are read and not run; a new one changes the count."""
    texts = [shlex.join(param.values[0]) for param in commands()]
    found = {need: sum(bool(re.search(known, text)) for text in texts) for need, known in NEEDS.items()}
    assert found == COUNTED


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_metrics_page_lists_every_metric() -> None:
    logged: set[str] = set()
    for room in ("algorithm", "monitoring"):
        for file in sorted((ROOT / "patch_algorithm" / room).glob("*.py")):
            logged |= set(re.findall(r'"(patch_(?:level|monitor)/\w+)"', file.read_text("utf-8")))
    listed = [row[0].strip("`") for row in table_rows(ROOT / "docs" / "metrics.md")]
    assert sorted(name for name in listed if "/" in name) == sorted(logged)


def test_quickstart_page_shows_the_banner() -> None:
    from composer.core import Time

    from patch_algorithm.algorithm.banner import banner
    from patch_algorithm.stages.plan import Stage, StagePlan

    shown = next(b for b in blocks("text") if b.text.startswith("patch_level: k=4"))
    length = Time(120, "ba")
    plan = StagePlan((Stage(4, Time(80, "ba")),), seq_len=128, length=length)
    assert shown.text.rstrip("\n") == banner(plan, 512, 0, length)


def test_readme_versions_are_the_installed_ones() -> None:
    packages = {
        "torch": "torch",
        "Composer (`mosaicml`)": "mosaicml",
        "llm-foundry": "llm-foundry",
        "mosaicml-streaming": "mosaicml-streaming",
        "transformers": "transformers",
    }
    rows = {row[0]: row for row in table_rows(ROOT / "README.md") if row[0] in packages}
    assert set(rows) == set(packages)
    for name, (_, supported, tested) in rows.items():
        installed = version(packages[name]).partition("+")[0]
        assert installed == tested.partition(",")[0]
        assert installed.startswith(supported)


def test_recipes_page_overrides_keys_that_exist() -> None:
    cfg = OmegaConf.load(ROOT / "yamls" / "mpt-1b-patch.yaml")
    keys = [
        key for row in table_rows(ROOT / "docs" / "recipes.md") for key in re.findall(r"([a-z_.]+)=", row[1])
    ]
    assert len(keys) > 5
    for key in keys:
        assert OmegaConf.select(cfg, key) is not None, key
