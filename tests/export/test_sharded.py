"""Exports of runs in FSDP2 against both kinds of checkpoint that it saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from patch_algorithm.cli import app
from tests.export.runs import check, export_of, found
from tests.ranks import on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.launcher]
NAMES = ("mpt", "llama", "gpt2", "olmoe")
CHECKPOINT = {"sharded": "ep0-ba{}", "full": "ep0-ba{}-rank0.pt"}


@pytest.fixture(scope="module", params=CHECKPOINT)
def runs(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder, kind = tmp_path_factory.mktemp("runs"), request.param
    arguments = (str(corpus), str(folder), kind, *NAMES)
    on_ranks(2, "tests.export.sharded_run", tmp_path_factory.mktemp("ranks"), *arguments)
    return folder, CHECKPOINT[kind]


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_its_checkpoint(name: str, runs: tuple[Path, str]) -> None:
    folder, checkpoint = runs
    run = folder / name
    report = found(check(export_of(run), "--checkpoint", run / checkpoint.format(4), "--json"))
    compared = report["comparison"]
    assert compared["largest_difference"] <= compared["tolerance"] < 1e-2
    assert compared["weights_that_differ"] == []
    assert [stage["k"] for stage in report["training"]["stages"]] == [4, 1]
    assert report["ids"].get("error", []) == (["export-misread"] if name == "mpt" else [])
    text = run / "text.txt"
    text.write_text("w1 w2 w3 w5 w8 w13 w21 w34 w55 w89 w10 w20")
    losses = []
    for model in (run / checkpoint.format(4), export_of(run)):
        asked = ["eval", str(model), "--data", str(text), "--trust-remote-code", "--json"]
        evaluated = CliRunner().invoke(app, asked)
        assert evaluated.exit_code == 0, evaluated.stderr
        losses.append([one["loss"] for one in json.loads(evaluated.stdout)["measures"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    other = check(export_of(run, 2), "--checkpoint", run / checkpoint.format(4), "--json")
    assert found(other)["ids"]["error"][0] == "export-differs"
    refused = check(export_of(run, 2), "--checkpoint", run / checkpoint.format(2))
    assert refused.exit_code == 2
    assert "was on patches of 4 (k=4" in refused.stderr


def test_a_sharded_checkpoint_that_lacks_a_part(runs: tuple[Path, str]) -> None:
    folder, checkpoint = runs
    saved = folder / "llama" / checkpoint.format(2)
    if saved.is_file():
        pytest.skip("a full checkpoint is one file")
    part = saved / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-100])
    for harm in (lambda: None, part.unlink):
        harm()
        refused = check(export_of(folder / "llama"), "--checkpoint", saved)
        assert refused.exit_code == 2
        assert "it is damaged, cut short" in refused.stderr
