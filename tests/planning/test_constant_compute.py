"""Doctor, plan and twin of a run with constant compute per step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import LlamaConfig
from typer.testing import CliRunner, Result

from patch_algorithm.cli import app
from patch_algorithm.planning.doctor import examine
from patch_algorithm.planning.plan import make_plan
from patch_algorithm.planning.plan_picture import _DataClock
from patch_algorithm.planning.run_clock import rates_of, run_clock
from patch_algorithm.planning.run_file import RunFile
from patch_algorithm.planning.twin import write_twin
from tests.planning.runs import PAPER, PAPER_SHAPE, run_of, settings, written

BATCH = 8 * 64  # raw tokens


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def constant(length: str = "12ba", ratio: Any = "8ba") -> dict[str, Any]:
    patch_level = {"k": 4, "ratio": ratio, "seq_len": 16, "constant_compute": True}
    return {"max_duration": length, "algorithms": {"patch_level": patch_level}}


@pytest.mark.parametrize(
    ("length", "ratio"),
    [
        ("12ba", "8ba"),
        ("288sp", "256sp"),
        (f"{36 * BATCH}tok", f"{32 * BATCH}tok"),
        ("12ba", f"{32 * BATCH}tok"),
    ],
)
def test_the_clock_counts_what_steps_take(length: str, ratio: str) -> None:
    clock = run_clock(run_of(**constant(length, ratio)))
    assert clock is not None
    assert (clock.switch, clock.end, clock.raw_tokens) == (8, 12, 36 * BATCH)
    assert [int(clock.at(step).token.value) // BATCH for step in (0, 1, 8, 9, 12)] == [0, 4, 32, 33, 36]


def test_plan_counts_equal_positions_a_step_and_the_data_of_both_stages() -> None:
    run = make_plan(run_of(**constant())).costs[1]
    assert [stage.positions_per_step for stage in run.stages] == [8 * 64, 8 * 64]
    assert [stage.raw_tokens for stage in run.stages] == [32 * BATCH, 4 * BATCH]
    token = make_plan(run_of(**constant())).costs[0]
    assert (token.steps, token.raw_tokens) == (36, run.raw_tokens)


def test_rates_know_the_switch() -> None:
    rates = rates_of(run_of(**constant(f"{36 * BATCH}tok", f"{32 * BATCH}tok"), scheduler=PER_STAGE))
    assert rates is not None
    assert (rates.switch, rates.end) == (8, 12)
    assert rates.before_switch < 0.2 < rates.token_peak


PER_STAGE = {
    "name": "per_stage",
    "scheduler": {"name": "cosine_with_warmup", "t_warmup": "0dur", "alpha_f": 0.0},
}


@pytest.mark.parametrize(("same", "steps"), [("compute", 12), ("data", 36)])
def test_the_twin_takes_its_compute_or_its_data(tmp_path: Path, same: str, steps: int) -> None:
    plan = make_plan(RunFile.read(written(tmp_path, **constant())))
    twin = write_twin(plan, str(tmp_path / "twin.yaml"), same)
    its = make_plan(RunFile.read(str(twin.path))).costs[1]
    assert (twin.steps, its.steps, its.raw_tokens) == (steps, steps, steps * BATCH)


def test_the_picture_is_over_raw_tokens() -> None:
    clock = _DataClock(make_plan(run_of(**constant())).costs[1], BATCH)
    assert [clock.at(step) for step in (0, 1, 8, 9, 12)] == [0, 4, 32, 33, 36]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_picture_is_drawn(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"plan.{ending}"
    done = call("plan", written(tmp_path, **constant()), "--picture", str(out))
    assert done.exit_code == 0, done.output
    if ending == "svg":
        text = out.read_text()
        assert "patch stage, k=4" in text
        assert "8 steps" in text


@pytest.mark.parametrize("ratio", ["8ba", 0.3, "1ep"])
def test_a_run_in_epochs_is_refused_with_its_key(tmp_path: Path, ratio: Any) -> None:
    path = written(tmp_path, **constant("2ep", ratio))
    done = call("plan", path)
    assert done.exit_code == 2
    assert "algorithms.patch_level.constant_compute=True does not work with max_duration='2ep'" in " ".join(
        done.output.split()
    )
    found = [one for one in examine(OmegaConf.load(path)) if one.id == "bad-value"]
    assert ["in batches, samples or tokens" in one.found for one in found] == [True]
    token_only = constant("2ep", 0)
    assert not [one for one in examine(OmegaConf.create(settings(**token_only))) if one.id == "bad-value"]


def test_a_proposal_states_its_own_convention(tmp_path: Path) -> None:
    paper = PAPER.format(folder=hugging_face_config(tmp_path))
    asked = ("--suggest", "--flops", "1e21", "--json")
    path = tmp_path / "paper.yaml"
    for given, stated in (
        (paper, False),
        (paper.replace("on_switch: reset", "on_switch: reset, constant_compute: true"), True),
    ):
        path.write_text(given)
        done = call("plan", str(path), *asked)
        assert done.exit_code == 0, done.output
        suggestion = json.loads(done.stdout)["suggestion"]
        assert ("constant_compute: false}" in suggestion["yaml"]) is stated
        assert any("same number of raw tokens" in reason for reason in suggestion["reasons"]) is stated


def hugging_face_config(folder: Path) -> str:
    (folder / "llama").mkdir()
    LlamaConfig(**PAPER_SHAPE).save_pretrained(folder / "llama")
    return str(folder / "llama")


@pytest.mark.parametrize(
    ("share", "found"),
    [("0.3dur", []), ("0.5dur", []), ("0.6dur", ["ratio-high"]), ("0.9dur", ["ratio-high"])],
)
def test_doctor_judges_the_share_of_steps(share: str, found: list[str]) -> None:
    run = settings(**constant("1000ba", share))
    assert [one.id for one in examine(OmegaConf.create(run)) if one.id == "ratio-high"] == found


def test_init_leaves_a_run_that_has_patches_already(tmp_path: Path) -> None:
    done = call("init", written(tmp_path, **constant()), "--out", str(tmp_path / "new.yaml"))
    assert done.exit_code == 2
    assert "already has algorithms.patch_level" in " ".join(done.output.split())
    assert not (tmp_path / "new.yaml").exists()
