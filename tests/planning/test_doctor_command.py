"""The command ``patch-level doctor``: exit codes, text and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from typer.testing import CliRunner

from patch_algorithm.cli import app


def run_doctor(cfg: dict[str, Any], folder: Path, *options: str) -> Any:
    path = folder / "run.yaml"
    OmegaConf.save(OmegaConf.create(cfg), path)
    return CliRunner().invoke(app, ["doctor", str(path), *options])


def test_exit_codes_and_text(healthy: dict[str, Any], tmp_path: Path) -> None:
    fine = run_doctor(healthy, tmp_path)
    assert fine.exit_code == 0, fine.output
    assert "patch-algorithm" in fine.output.splitlines()[0]
    warned = ["scheduler.t_warmup=0ba"]
    assert run_doctor(healthy, tmp_path, *warned).exit_code == 0
    strict = run_doctor(healthy, tmp_path, *warned, "--strict")
    assert strict.exit_code == 1
    assert "warning  no-warmup" in strict.output
    assert run_doctor(healthy, tmp_path, "algorithms.patch_level.raito=1").exit_code == 1
    missing = CliRunner().invoke(app, ["doctor", "none.yaml"])
    assert missing.exit_code == 2
    assert "there is no configuration file" in missing.output


def test_json_without_secrets(healthy: dict[str, Any], tmp_path: Path) -> None:
    bad = "train_loader.dataset.max_seq_len=s3://key:hunter22hunter22@bucket/pile"
    result = run_doctor(healthy, tmp_path, "--json", bad)
    report = json.loads(result.stdout)
    assert report["counts"]["error"] == 1
    assert set(report["findings"][0]) == {"id", "severity", "found", "why", "fix"}
    assert report["versions"]["torch"]
    assert "hunter22" not in result.output
    assert "hunter22" not in run_doctor(healthy, tmp_path, bad).output


def test_the_environment() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["file"] is None
    assert {"advisory"} <= {one["id"] for one in report["findings"]}
    assert not [one for one in report["findings"] if one["id"] in ("not-registered", "package-missing")]
