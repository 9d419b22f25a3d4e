"""What reads results again: the report of runs, and the model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from patch_algorithm.cli import app
from tests.evaluation.test_command import evaluate
from tests.export.runs import check
from tests.reporting.synthetic import SAME_DATA, run


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def measured(export: Path, texts: Path, tmp_path: Path) -> dict[str, Any]:
    """A result, of a model that is said to be of one of the paper's sizes."""
    out = tmp_path / "measured.json"
    assert evaluate(export, "--data", texts, "--out", out).exit_code == 0
    result = json.loads(out.read_text())
    result["model"]["parameters"] = 372_000_000
    return result


def zero_shot(measured: dict[str, Any]) -> dict[str, Any]:
    """As the harness gives it, which not every installation has."""
    scores = [1.0, 0.0, 1.0, 1.0]
    piqa = {"task": "piqa", "value": 0.75, "error": 0.25, "items": 4, "scores": scores}
    tasks = [{**piqa, "measure": "acc"}, {**piqa, "measure": "acc_norm"}]
    data = {"path": "zero-shot", "digest": "0"}
    return {**measured, "preset": "zero-shot", "stride": None, "measures": [], "tasks": tasks, "data": data}


def test_a_report_shows_results_with_the_papers(measured: dict[str, Any], tmp_path: Path) -> None:
    patch, twin = run(tmp_path / "patch"), run(tmp_path / "twin", SAME_DATA)
    (tmp_path / "patch/wikitext.json").write_text(json.dumps(measured))
    (tmp_path / "patch/other.json").write_text("[]")
    (tmp_path / "patch/damaged.json").write_text("{")
    given = tmp_path / "tasks.json"
    given.write_text(json.dumps(zero_shot(measured)))
    out = tmp_path / "out"
    result = report(patch, twin, f"twin={given}", tmp_path / "patch/wikitext.json", "--out", out)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    perplexity = f"{measured['measures'][0]['token_perplexity']:.4g}"
    papers = ["10.94", "(370M)", "10.68"]
    assert ["patch", "test.jsonl", "rows", "token", "perplexity", perplexity, *papers] in rows
    assert ["twin", "zero-shot", "piqa", "acc_norm", "0.75", "±", "0.25", "0.675", "(370M)", "0.68"] in rows
    assert ["twin", "zero-shot", "piqa", "acc", "0.75", "±", "0.25", "–", "–"] in rows
    page = (out / "report.html").read_text("utf-8")
    assert "<h2>Evaluations</h2>" in page
    assert page.count("10.94 (370M)") == 1
    found = json.loads((out / "report.json").read_text("utf-8"))["evaluations"]
    assert [one["name"] for one in found] == ["patch", "twin"]
    assert found[0]["numbers"][1]["papers"] == [10.94, 10.68]
    assert "units" not in json.dumps(found)


def test_results_that_a_report_cannot_use(measured: dict[str, Any], tmp_path: Path) -> None:
    patch, file = run(tmp_path / "patch"), tmp_path / "a.json"
    for content, words in (
        ("{", "is not JSON"),
        ("{}", "is not a result of `patch-level eval --out`"),
        (json.dumps({**measured, "format": 9}), "has format 9; this version reads format 1"),
    ):
        file.write_text(content)
        result = report(patch, file, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert words in result.stderr
    assert "give at least one run" in report(file, "--out", tmp_path / "out").stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", ["paper", "zero-shot"])
def test_a_card_shows_results(preset: str, measured: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(measured if preset == "paper" else zero_shot(measured)))
    folder = shutil.copytree(trained / "huggingface/ba4", tmp_path / "export")
    asked = folder, "--checkpoint", trained / "ep0-ba4-rank0.pt", "--card", "--results", file
    assert check(*asked).exit_code == 0
    lines = (folder / "README.md").read_text().splitlines()
    bits = f"{measured['measures'][1]['bits_per_byte']:.4g}"
    wanted = {
        "paper": f"| test.jsonl: documents | bits per byte | {bits} |",
        "zero-shot": "| piqa | acc_norm | 0.75 ± 0.25 |",
    }
    assert wanted[preset] in lines
