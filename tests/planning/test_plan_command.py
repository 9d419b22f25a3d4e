"""``patch-level plan`` as a shell sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from patch_algorithm.cli import app
from tests.planning.runs import written

TIMES = ("--gpus", "8", "--gpu", "h100", "--mfu", "0.4", "--price", "2.5")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words])


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from patch_algorithm.cli import app; app(['plan', '--help'], standalone_mode=False);"
        "print(sorted({'torch', 'transformers', 'composer', 'llmfoundry', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--twin" in done.stdout
    assert "--suggest --gpu-hours 500" in done.stdout


def test_text_and_picture(tmp_path: Path) -> None:
    done = call(written(tmp_path), *TIMES, "--picture", str(tmp_path / "plan.png"))
    assert done.exit_code == 0, done.output
    for line in (
        "patch k=4",
        "token-only, same data",
        "this run, longer: equal compute",
        "Verdict",
        "No. Expect",
    ):
        assert line in done.output
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"
    lines = (line for line in done.output.splitlines() if str(tmp_path) not in line)
    assert max(map(len, lines)) < 150


def test_a_curriculum_is_said_not_to_be_counted(tmp_path: Path) -> None:
    curriculum = {"duration": "1tok", "schedule": [{"duration": "1tok", "dataset": {}}]}
    done = call(written(tmp_path, callbacks={"curriculum_learning": curriculum}), *TIMES)
    assert done.exit_code == 0, done.output
    assert "the other datasets are not read here" in " ".join(done.output.split())


def test_json_holds_the_numbers(tmp_path: Path) -> None:
    out = tmp_path / "twin.yaml"
    done = call(written(tmp_path), *TIMES, "--json", "--suggest", "--flops", "1e12", "--twin", str(out))
    said = json.loads(done.stdout)
    token, run, longer = said["runs"]
    assert run["flops"] / token["flops"] == pytest.approx(0.5, rel=1e-3)
    assert run["money"] == pytest.approx(2.5 * run["gpu_hours"])
    assert [stage["name"] for stage in run["stages"]] == ["patch k=4", "token"]
    assert longer["raw_tokens"] == 2 * run["raw_tokens"]
    assert said["verdict"]["equal_compute"] == "no"
    assert said["suggestion"]["k"] == 1
    assert said["twin"]["path"] == str(out)
    assert out.is_file()


def test_units_of_the_other_paper() -> None:
    done = call("--r", "0.3", "--s", "6")
    assert (done.exit_code, "ratio: 0.72" in done.output) == (0, True)
    assert json.loads(call("--r", "0.2", "--s", "4", "--json").stdout)["conversion"][
        "ratio"
    ] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give the run's YAML"),
        (("none.yaml",), "there is no configuration file 'none.yaml'"),
        (("{run}", "nonsense"), "not of the form key=value"),
        (("{run}", "max_duration=null"), "max_duration is missing"),
        (("{run}", "model.n_heads=5"), "mpt_causal_lm cannot be built"),
        (("{run}", "train_loader.dataset.max_seq_len=63"), "not a multiple of"),
        (("{run}", "algorithms.patch_level.raito=0.5"), "algorithms.patch_level"),
        (
            ("{run}", "algorithms.patch_level.target_weights=[4,2,1]"),
            "algorithms.patch_level.target_weights=[4, 2, 1] holds 3 weights",
        ),
        (("{run}", "algorithms.patch_level.loss_kernel=cuda"), "algorithms.patch_level.loss_kernel='cuda'"),
        (("{run}", "algorithms.patch_level.constant_compute=1"), "algorithms.patch_level.constant_compute=1"),
        (("{run}", "--gpu", "z80"), "expected one of a10"),
        (("{run}", "--gpu", "h100", "--mfu", "40"), "--mfu 40"),
        (("{run}", "--price", "2"), "--price needs hours"),
        (("{run}", "--gpu", "h100", "--like", "x"), "mutually exclusive"),
        (("{run}", "--price", "2", "--like", "x"), "needs --gpus"),
        (("{run}", "--like", "none.jsonl"), "cannot be read"),
        (("{run}", "--suggest"), "exactly one of"),
        (("{run}", "--tokens", "1e9"), "a budget for --suggest"),
        (("{run}", "--suggest", "--gpu-hours", "10"), "--gpu-hours needs"),
        (("{run}", "--suggest", "--flops", "-1"), "expected a number above 0"),
        (("{run}", "--picture", "plan.txt"), "ends in .svg"),
        (("{run}", "--twin", "{run}"), "exists, and is not replaced"),
        (("--r", "0.3"), "go together"),
        (("--r", "1.5", "--s", "4"), "r between 0 and 1"),
    ],
)
def test_bad_input(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = written(tmp_path)
    done = call(*(word.format(run=run) for word in words))
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output


def test_gpu_hours_by_a_history_without_flops(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"kind": "start", "step": 0}]
    for step in range(1, 5):
        at = {"stage": 0, "k": 1, "step": step, "raw_tokens": 64 * step, "positions": 64 * step}
        lines.append({"kind": "step", **at, "flops": None, "seconds": 0.1 * step, "metrics": {}})
    history = tmp_path / "history.jsonl"
    history.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    budget = ("--suggest", "--gpu-hours", "500")
    done = call(written(tmp_path), *budget, "--like", str(history), "--gpus", "8")
    assert done.exit_code == 2
    assert f"{history} records none. Give --gpu and --mfu instead of --like" in " ".join(done.output.split())
    assert call(written(tmp_path), *budget, *TIMES).exit_code == 0


def test_a_scheduler_that_is_not_registered_leaves_the_rest_of_the_plan(tmp_path: Path) -> None:
    run = written(tmp_path, scheduler={"name": "cosine_of_mine"})
    done = call(run, "--json")
    assert done.exit_code == 0, done.output
    assert "cosine_of_mine" in done.output
    assert len(json.loads(done.stdout)["runs"]) == 3


def test_options_that_need_a_gpu_or_another_loss_can_be_planned(tmp_path: Path) -> None:
    plain = json.loads(call(written(tmp_path), "--json").stdout)
    options = ("target_weights=[4,2,1,1]", "loss_kernel=triton")
    done = call(written(tmp_path), *(f"algorithms.patch_level.{one}" for one in options), "--json")
    assert json.loads(done.stdout)["runs"] == plain["runs"]
