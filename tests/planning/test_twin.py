"""A run's twin: the same compute or the same data at token level, by the same reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from patch_algorithm.planning.plan import Plan, make_plan
from patch_algorithm.planning.run_file import RunFile
from patch_algorithm.planning.twin import Twin, write_twin
from tests.planning.runs import settings, written

TEXT = """\
# A run.
max_seq_len: 16 # L

# What is special.
algorithms:
  patch_level:
    k: 4 # tokens a patch
    ratio: "2/3"
    seq_len: ${max_seq_len}
  gradient_clipping: {clipping_type: norm, clipping_threshold: 1.0}
"""
CONSTANT = {"name": "constant_with_warmup", "t_warmup": "0dur"}
LINEAR = {"name": "linear_decay_with_warmup", "t_warmup": "2ba", "t_max": "1dur"}
REST = {key: value for key, value in settings().items() if key != "algorithms"}


def twin_of(
    folder: Path, same: str = "compute", overrides: tuple[str, ...] = (), **changes: Any
) -> tuple[Plan, Twin, Plan]:
    path = folder / "run.yaml"
    path.write_text(TEXT + yaml.safe_dump({**REST, **changes}, sort_keys=False))
    plan = make_plan(RunFile.read(str(path), overrides))
    twin = write_twin(plan, str(folder / "twin.yaml"), same, overrides)
    return plan, twin, make_plan(RunFile.read(str(twin.path)))


def test_on_the_same_compute(tmp_path: Path) -> None:
    plan, twin, its = twin_of(tmp_path, max_duration="1200ba")
    run, token = plan.costs[1], its.costs[1]
    assert all(not stage.in_patches for stage in token.stages)
    assert token.flops == pytest.approx(run.flops, rel=1e-3)
    assert (twin.steps, token.steps, its.run.config["max_duration"]) == (600, 600, "600ba")
    # Rows of 64 tokens are cut into rows of 16, as in the run's token stage, and none is dropped.
    after = run.stages[-1]
    (stage,) = token.stages
    assert (stage.rows_per_step, stage.positions_per_row) == (after.rows_per_step, after.positions_per_row)
    assert stage.raw_tokens // stage.steps == after.raw_tokens // after.steps


def test_on_the_same_data(tmp_path: Path) -> None:
    plan, twin, its = twin_of(tmp_path, "data")
    assert (its.costs[1].raw_tokens, its.costs[1].steps) == (plan.costs[1].raw_tokens, 12)
    assert its.costs[1].flops == pytest.approx(plan.costs[0].flops)
    assert its.run.max_duration == plan.run.max_duration
    assert not any("max_duration" in change for change in twin.changes)


def test_all_else_is_the_runs(tmp_path: Path) -> None:
    _, twin, its = twin_of(tmp_path)
    text = twin.path.read_text()
    before, after = yaml.safe_load((tmp_path / "run.yaml").read_text()), yaml.safe_load(text)
    assert after["algorithms"].pop("patch_level") == {"k": 1, "seq_len": "${max_seq_len}"}
    del before["algorithms"]["patch_level"], before["max_duration"], after["max_duration"]
    assert after == before
    assert "# What is special." in text
    assert "max_seq_len: 16 # L" in text
    assert "tokens a patch" not in text
    assert its.run.algorithm is not None
    assert its.run.plan is not None
    assert its.run.plan.stages == ()


def test_rows_of_the_context_need_no_algorithm(tmp_path: Path) -> None:
    loader = {"name": "pile", "dataset": {"split": "train", "max_seq_len": 16}, "drop_last": True}
    plan, twin, its = twin_of(tmp_path, train_loader=loader)
    assert list(yaml.safe_load(twin.path.read_text())["algorithms"]) == ["gradient_clipping"]
    # Positions fold, so attention is cheaper too: the FLOPs are met, not the positions.
    step = its.costs[1].flops / its.costs[1].steps  # pyright: ignore[reportOptionalOperand]
    assert its.costs[1].flops == pytest.approx(plan.costs[1].flops, abs=step / 2)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (
            {"name": "warmup_stable_decay", "t_warmup": "2ba", "t_decay": "120ba"},
            {"t_warmup": "2ba", "t_decay": "60ba"},
        ),
        (
            {"name": "cosine_with_warmup", "t_warmup": "2ba", "t_max": "1dur"},
            {"t_warmup": "2ba", "t_max": "1dur"},
        ),
        (
            {
                "name": "per_stage",
                "scheduler": {"name": "cosine_with_warmup", "t_warmup": "2ba", "t_max": "400ba"},
            },
            {"name": "cosine_with_warmup", "t_warmup": "2ba", "t_max": "600ba"},
        ),
        (
            {
                "name": "per_stage",
                "schedulers": [CONSTANT, LINEAR],
            },
            LINEAR,
        ),
    ],
)
def test_the_rate_ends_its_own_decay(
    scheduler: dict[str, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    _, _, its = twin_of(tmp_path, max_duration="1200ba", scheduler=scheduler)
    assert expected.items() <= its.run.config["scheduler"].items()
    assert not its.rates.fault
    if scheduler["name"] != "per_stage":
        assert its.rates.values[-1] == pytest.approx(0, abs=1e-9)


def test_the_unit_of_the_length_stays(tmp_path: Path) -> None:
    _, _, its = twin_of(tmp_path, max_duration="614_400tok", scheduler=CONSTANT)
    assert its.run.config["max_duration"] == "307200tok"


def test_overrides_are_written_and_outputs_parted(tmp_path: Path) -> None:
    changes = {
        "run_name": "mine",
        "save_folder": "./runs/mine",
        "loggers": {"history": {"path": "./mine/history.jsonl"}},
        "callbacks": {"hf_checkpointer": {"save_folder": "./{run_name}/hf", "save_interval": "1dur"}},
    }
    overrides = ("optimizer.lr=2e-5", "max_duration=1200ba")
    plan, _, its = twin_of(tmp_path, overrides=overrides, **changes)
    assert plan.costs[1].steps == 1200
    config = its.run.config
    assert (config["optimizer"]["lr"], config["max_duration"]) == (2e-5, "600ba")
    assert (config["run_name"], config["save_folder"]) == ("mine-token", "./runs/mine-token")
    assert config["loggers"]["history"]["path"] == "./mine/history-token.jsonl"
    assert config["callbacks"]["hf_checkpointer"]["save_folder"] == "./{run_name}/hf"


def test_refusals(tmp_path: Path) -> None:
    path = written(tmp_path)
    plan = make_plan(RunFile.read(path))
    with pytest.raises(ValueError, match="exists, and is not replaced"):
        write_twin(plan, path)
    with pytest.raises(ValueError, match="there is no folder"):
        write_twin(plan, str(tmp_path / "none" / "twin.yaml"))
    token = make_plan(RunFile.read(written(tmp_path, "token.yaml", algorithms={})))
    with pytest.raises(ValueError, match="token level already"):
        write_twin(token, str(tmp_path / "twin.yaml"))
    assert not (tmp_path / "twin.yaml").exists()


def test_options_of_the_patch_stage_are_left_out(tmp_path: Path) -> None:
    options = ("target_weights=[4,2,1,1]", "loss_kernel=triton", "on_switch=reset", "constant_compute=true")
    overrides = tuple(f"algorithms.patch_level.{one}" for one in options)
    _, _, its = twin_of(tmp_path, overrides=overrides)
    assert its.run.config["algorithms"]["patch_level"] == {"k": 1, "seq_len": 16}
