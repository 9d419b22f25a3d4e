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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def arguments(heading: str) -> dict[str, str]:
    """The first two columns of the first table below a heading of the configuration page."""
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8").partition(f"\n## {heading}\n")[2]
    table = re.search(r"(^\|.*\n)+", text, re.M)
    assert table, heading
    rows = [line.strip("|").split("|") for line in table[0].splitlines()[2:]]
    return {row[0].strip(" `"): row[1].strip(" `") for row in rows}


@pytest.mark.parametrize(
    ("heading", "home", "name"),
    [
        ("The algorithm: `patch_level`", "patch_algorithm.algorithm", "PatchLevel"),
        ("The report: `stage_report`", "patch_algorithm.monitoring", "StageReport"),
        ("The history: `history`", "patch_algorithm.monitoring", "HistoryLogger"),
        (
            "The built-in corpus: `variables.builtin_corpus`",
            "patch_algorithm.data.corpus",
            "BuiltinCorpus",
        ),
    ],
    ids=["patch_level", "stage_report", "history", "builtin_corpus"],
)
def test_configuration_page_lists_every_argument(heading: str, home: str, name: str) -> None:
    listed = arguments(heading)
    parameters = inspect.signature(getattr(import_module(home), name)).parameters
    assert list(listed) == list(parameters)
    for argument, parameter in parameters.items():
        required = parameter.default is inspect.Parameter.empty
        expected = "required" if required else parameter.default
        shown = listed[argument] if required else eval(listed[argument])
        assert shown == expected, f"{argument}: the page says {listed[argument]}"


def test_configuration_page_lists_every_metric() -> None:
    room = ROOT / "patch_algorithm" / "algorithm"
    source = "".join(file.read_text("utf-8") for file in sorted(room.glob("*.py")))
    logged = set(re.findall(r'"(patch_level/\w+)"', source))
    listed = {row[0].strip("`") for row in table_rows(ROOT / "docs" / "configuration.md")}
    assert {name for name in listed if name.startswith("patch_level/")} == logged


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
