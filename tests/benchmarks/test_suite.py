"""The suite runs through every part, judges by its rule, and writes pages that hold what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import ROOT, build_parser, run_suite
from benchmarks.fsdp import notes_of
from benchmarks.pages import BEGIN, END, latest, markdown, write_docs
from benchmarks.pairs import Comparison, free_path
from benchmarks.parts import PARTS

QUICK = ["loss", "embedding", "step", "switch", "runs", "growth"]


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    return run_suite(QUICK, quick=True)


@pytest.mark.filterwarnings("ignore:The switch at")
def test_every_part_measures_something(found: dict[str, object]) -> None:
    parts = json.loads(json.dumps(found))["parts"]
    assert list(parts) == QUICK
    for name, part in parts.items():
        assert part["comparisons"], name
        for one in part["comparisons"]:
            assert one["pairs"] == len(one["left"]) == len(one["right"]) == 2, one["name"]
            assert min(one["left"] + one["right"]) > 0, one["name"]
            low, high = one["interval"]
            assert low <= one["median"] <= high


def test_the_page_has_every_ratio_and_what_stood_around_it(found: dict[str, object], tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{BEGIN}\nearlier result\n{END}\nafter\n")
    write_docs([found], tmp_path)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "earlier result" not in text
    assert markdown(found) in text
    for theme in ("light", "dark"):
        assert "<svg" in (tmp_path / f"benchmarks-{theme}.svg").read_text()
        assert f"benchmarks-{theme}.svg" in text
    write_docs([found], tmp_path)
    assert page.read_text() == text


def test_a_page_without_the_marks_is_left_alone(found: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text("mine\n")
    with pytest.raises(ValueError, match="lacks the lines"):
        write_docs([found], tmp_path)
    assert (tmp_path / "benchmarks.md").read_text() == "mine\n"
    assert not list(tmp_path.glob("*.svg"))


def test_a_part_that_is_measured_again_replaces_the_earlier() -> None:
    first = {"date": "1", "parts": {"loss": 1, "step": 1}}
    second = {"date": "2", "parts": {"loss": 2}}
    third = {"date": "3", "parts": {"runs": 3, "loss": 3}}
    assert latest([first, second, third]) == [first | {"parts": {"step": 1}}, third]


def test_the_documentation_has_the_marks() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


@pytest.mark.parametrize(
    ("left", "limit", "verdict"),
    [
        ([0.9] * 30, 1.0, "met"),
        ([1.1] * 30, 1.0, "missed"),
        ([0.9, 1.1] * 15, 1.0, "not decided on this machine"),
        ([0.9, 1.1] * 15, None, "no difference found"),
        ([1.1] * 30, None, "they differ"),
    ],
)
def test_a_goal_is_met_if_the_whole_interval_is_below_it(
    left: list[float], limit: float | None, verdict: str
) -> None:
    assert Comparison("x", limit, left, [1.0] * 30).verdict() == verdict


def test_no_result_is_overwritten(tmp_path: Path) -> None:
    free_path(tmp_path, "a", ".json").touch()
    assert free_path(tmp_path, "a", ".json").name == "a-2.json"


def test_help_names_the_parts_and_bad_input_is_said() -> None:
    assert all(name in build_parser().format_help() for name in PARTS)
    command = [sys.executable, "-m", "benchmarks", "--quick", "--docs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--quick measures nothing that counts" in done.stderr


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_what_the_times_of_sharded_steps_say() -> None:
    found = {"parameters": 10**6, "gather": [0.01], "update": [0.02]}
    found["steps"] = {"100": [0.14], "200": [0.24]}  # 40 ms + 1 ms a position
    notes = notes_of(found)
    assert "40.0 ms + P * 1.0000 ms" in notes[1]
    assert notes[2].startswith("P=100: 140.0 ms, of which the part that does not shrink is 29%")


@pytest.mark.slow
def test_the_scripts_for_shards_and_for_gpus_run_here(tmp_path: Path) -> None:
    sizes = "--turns 1 --positions 8 16 --layers 1 --width 32 --vocabulary 64"
    done = run_module("benchmarks.fsdp", *sizes.split())
    assert done.returncode == 0, done.stderr[-2000:]
    assert "P=16" in done.stdout
    done = run_module("benchmarks.gpu", "--dry-run", "--profile", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tiny, sdpa, k=4" in done.stdout
    assert len(list(tmp_path.iterdir())) == 3
