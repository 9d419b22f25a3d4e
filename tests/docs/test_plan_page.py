"""What ``docs/plan.md`` shows is what the commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from patch_algorithm.cli import app
from patch_algorithm.planning.costs_speed import GPUS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plan.md").read_text("utf-8")
SHOWN = re.findall(r"^```console\n([^`]*?)^```\n\n```text\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[command.strip()[:50] for command, _ in SHOWN])
def test_the_page_shows_what_is_printed(command: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0
    assert done.stdout.rstrip() == output.rstrip()


def test_the_page_has_its_examples() -> None:
    assert len(SHOWN) == 2


def test_the_page_lists_every_peak() -> None:
    listed = " ".join(PAGE.split())
    for name, gpu in GPUS.items():
        assert f"{name} " in listed
        assert f"{gpu.peak / 1e12:,.0f}" in listed
