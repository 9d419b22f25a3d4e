"""The reference pages: whole, and made of the code."""

from __future__ import annotations

import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from patch_algorithm.checks import CATALOGUE
from patch_algorithm.cli import app
from patch_algorithm.common.command_line import anchor_of_module

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Share of the errors whose text is not written where they are made: they pass on that of another.
MOST_SILENT = 0.1


@pytest.fixture(scope="module")
def made(pytestconfig: pytest.Config) -> SimpleNamespace:
    """The modules that write the blocks."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        import generated
        import generated_errors
        import generated_keys
    finally:
        sys.path.pop(0)
    return SimpleNamespace(expand=generated.expand, errors=generated_errors, keys=generated_keys)


def expanded(made: SimpleNamespace, page: str) -> str:
    return made.expand((DOCS / f"{page}.md").read_text("utf-8"))


def ours() -> list[Any]:
    groups = ("algorithms", "callbacks", "loggers", "schedulers", "optimizers", "dataloaders", "tokenizers")
    found = [one for group in groups for one in entry_points(group=f"llmfoundry_{group}")]
    return [one for one in found if one.value.startswith("patch_algorithm.")]


def test_every_registered_name_is_on_the_yaml_page(made: SimpleNamespace) -> None:
    page = (DOCS / "configuration.md").read_text("utf-8")
    assert len(ours()) == 9
    for one in ours():
        assert re.search(rf"^## .*: `{one.name}`$", page, re.M), one.name
        assert f"{{generated}} keys {one.value.replace(' ', '')}" in page, one.value


@pytest.mark.parametrize("one", ours(), ids=lambda one: one.name)
def test_every_key_has_its_default_and_a_text(one: Any, made: SimpleNamespace) -> None:
    keys = made.keys.read_keys(one.load())
    assert keys
    assert all(key.text and (key.default or key.name.startswith("**")) for key in keys)
    page = expanded(made, "configuration")
    assert all(f"`{key.name}`" in page for key in keys)


def test_every_command_and_option_is_on_the_page(made: SimpleNamespace) -> None:
    from typer.main import get_command

    from patch_algorithm.cli import app

    page = expanded(made, "cli")
    count = 0

    def look(command: Any, name: str) -> None:
        nonlocal count
        for key, below in getattr(command, "commands", {}).items():
            look(below, f"{name} {key}")
        if not hasattr(command, "commands"):
            section = page.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
            assert section, name
            for parameter in command.params:
                count += 1
                wanted = parameter.opts if parameter.opts[0].startswith("-") else [parameter.name]
                assert any(word in section for word in wanted), f"{name}: {wanted}"
                assert "\n: ..." not in section, f"{name} has an option without a text"

    look(get_command(app), "patch-level")
    assert count > 80


def test_every_check_is_on_the_page_of_errors(made: SimpleNamespace) -> None:
    page = expanded(made, "errors")
    for check in CATALOGUE.values():
        assert page.count(f"{{#{check.id}}}") == 1
        assert check.summary in page
        assert f"### {check.subject}\n" in page


def test_every_error_is_on_the_page(made: SimpleNamespace) -> None:
    found = made.errors.messages()
    silent = made.errors.silent()
    assert len(found) > 300
    assert len(silent) / len(found) < MOST_SILENT, silent
    page = expanded(made, "errors")
    anchors = re.findall(r"\{#(error-[\w-]+)\}", page)
    assert len(anchors) == len(found) == len(set(anchors))


def test_what_a_command_prints_in_brackets_is_on_the_page(made: SimpleNamespace, tmp_path: Path) -> None:
    page = expanded(made, "errors")
    (tmp_path / "run.yaml").write_text("model: [")
    for args in (
        ["plan", str(tmp_path / "run.yaml")],
        ["doctor", str(tmp_path / "absent.yaml")],
        ["data", "info", str(tmp_path / "absent")],
        ["recipe", "absent"],
        ["report", str(tmp_path / "absent")],
        ["eval", str(tmp_path / "absent"), "--data", str(tmp_path)],
    ):
        done = CliRunner().invoke(app, args)
        assert done.exit_code == 2, done.output
        printed = re.search(r"\[([\w-]+)\]$", done.stderr.strip())
        assert printed, done.stderr
        assert page.count(f"{{#{printed[1]}}}") == 1


def test_every_part_that_refuses_has_one_anchor(made: SimpleNamespace) -> None:
    page = expanded(made, "errors")
    modules = made.errors.refusing_modules()
    assert len(modules) > 100
    for module in {*modules, *(one.module for one in made.errors.messages())}:
        assert page.count(f"{{#{anchor_of_module(module)}}}") == 1, module


def test_a_message_is_found_by_its_words(made: SimpleNamespace) -> None:
    page = expanded(made, "errors")
    assert "{#error-per-stage-takes-the-stages-from-the-patch}" in page
    from patch_algorithm.optim import WarmupStableDecay

    with pytest.raises(ValueError, match=r"alpha_f=2\.0 is not a number between 0 and 1\.") as raised:
        WarmupStableDecay("1ba", alpha_f=2.0)
    assert str(raised.value).replace("2.0", "…") in [one.text for one in made.errors.messages()]


def files_that_name_pages() -> list[Path]:
    folders = ("patch_algorithm", "yamls", "benchmarks")
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    return [*found, ROOT / "train.py", ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def test_pages_that_the_code_names_exist() -> None:
    """Messages, comments of the recipes and docstrings name pages of the documentation."""
    named = 0
    for path in files_that_name_pages():
        if path.suffix in (".py", ".yaml", ".md", ".j2"):
            for page, anchor in re.findall(r"docs/([\w-]+\.md)(?:#([\w-]+))?", path.read_text("utf-8")):
                named += 1
                assert (DOCS / page).is_file(), f"{path.name}: docs/{page}"
                assert not anchor or anchor in anchors_of(DOCS / page), f"{path.name}: {page}#{anchor}"
    assert named > 20


def anchors_of(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MyST make them, and those that it sets itself."""
    text = page.read_text("utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return made | set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))
