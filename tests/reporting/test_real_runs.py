"""Real runs: the quickstart cut to two layers of 64 and 120 steps, three seeds each, each fifth step kept."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from patch_algorithm.cli import app
from patch_algorithm.reporting.report import Report, make_report

FIXTURES = Path(__file__).parent / "fixtures"
PAGE = Path(__file__).parents[2] / "docs" / "report.md"


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report([str(path) for path in sorted(FIXTURES.glob("*.jsonl"))])


def last_losses(name: str) -> list[float]:
    """The last eval losses of a group's files, by nothing but JSON, in order of size."""
    found = []
    for path in FIXTURES.glob(f"{name}-*.jsonl"):
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        found.append([row for row in rows if row["kind"] == "eval"][-1]["metrics"])
    return sorted(metrics["metrics/eval/LanguageCrossEntropy"] for metrics in found)


def test_the_numbers_by_hand(report: Report) -> None:
    patch, data, compute = map(last_losses, ("patch", "same-data", "same-compute"))
    assert patch == [6.09165, 6.13248, 6.18656]
    assert data == [5.41544, 5.47834, 5.54065]
    assert compute == [6.14131, 6.25591, 6.34711]
    of_data, of_compute = report.verdicts
    # 6.13248 - 5.47834, and all of one above all of the other.
    assert of_data.difference == pytest.approx(0.65414)
    assert of_data.apart is True
    # 6.13248 - 6.25591; the lowest twin, 6.14131, lies among the patch runs.
    assert of_compute.difference == pytest.approx(-0.12343)
    assert of_compute.apart is False
    # (6.25591 - 6.13248) / (6.25591 - 5.47834) = 0.158738 of the way from 1 to 2 times the compute.
    (up,) = report.speed_ups
    assert up.low == up.high == pytest.approx(2**0.158738, rel=1e-5)
    assert up.low == pytest.approx(1.1163, abs=1e-4)
    assert "It is not certain" in up.text


def test_compute_and_data_by_hand(report: Report) -> None:
    patch, compute, data = report.groups
    # 120 steps of 8 rows of 512 tokens; 80 of them at a quarter of the positions: 20 + 40 token steps.
    assert patch.total("raw_tokens") == data.total("raw_tokens") == 120 * 8 * 512
    assert compute.total("raw_tokens") == 60 * 8 * 512
    assert patch.total("positions") == compute.total("positions") == 60 * 8 * 512
    assert patch.total("flops") == compute.total("flops") == pytest.approx(579_836_313_600)
    assert data.total("flops") == pytest.approx(2 * 579_836_313_600)
    assert {run.state for run in report.runs} == {"completed"}
    assert all(run.findings == [] for run in report.runs)


def test_the_recovery_by_hand(report: Report) -> None:
    (found,) = report.recoveries
    assert (found.step, found.baseline, found.steps, found.tokens) == (80, "same-compute", 5, 5 * 4096)
    assert found.before is not None
    assert found.after is not None
    assert math.isclose(found.before.loss, 6.465, abs_tol=5e-4)
    assert math.isclose(found.after.loss, 6.404, abs_tol=5e-4)


def test_the_page_shows_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text("utf-8")
    command = re.search(r"^```console\n(patch-level report .+?)^```", text, re.M | re.S)
    shown = re.search(r"^```text\n(.+?)^```", text, re.M | re.S)
    assert command
    assert shown
    words = shlex.split(command[1].replace("\\\n", " "))
    assert words[1:3] == ["report", "runs/*.jsonl"]
    (tmp_path / "runs").symlink_to(FIXTURES)
    monkeypatch.chdir(tmp_path)
    paths = sorted(str(path) for path in Path("runs").glob("*.jsonl"))
    monkeypatch.setattr("patch_algorithm.reporting.writing.write_report", lambda *_: None)
    result = CliRunner().invoke(app, ["report", *paths, *words[3:]])
    assert result.exit_code == 0
    assert [line.rstrip() for line in result.output.splitlines() if line] == [
        line for line in shown[1].splitlines() if line
    ]
