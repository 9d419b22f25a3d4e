"""``train.py`` and ``patch_algorithm.train`` under every launcher, and started again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from patch_algorithm import train
from patch_algorithm.common import machine
from tests.support import config, mpt

TRAIN = Path(__file__).parents[2] / "train.py"
OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")


def write_run(corpus: Path, folder: Path, **changes: Any) -> Path:
    """The YAML of a run of two batches, one of each stage, that may be resumed."""
    cfg = config(corpus, mpt(), algorithms={"patch_level": {"k": 4, "ratio": "1ba", "seq_len": 8}})
    cfg |= {"max_duration": "2ba", "run_name": "again", "save_folder": str(folder / "run")}
    cfg |= {"autoresume": True, "save_interval": "1ba"} | changes
    path = folder / "run.yaml"
    OmegaConf.save(OmegaConf.create(cfg), path)
    return path


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The main function, which may set environment variables."""
    for name in ("OMP_WAIT_POLICY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return train.main


def test_finished_run_that_is_queued_again_has_not_failed(
    main: Any, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_run(corpus, tmp_path)
    assert main([str(path)]) == 0
    saved = sorted((tmp_path / "run").glob("*.pt"))
    assert len(saved) > 1
    caplog.clear()
    assert main([str(path)]) == 0
    assert "already finished" in caplog.text
    assert "max_duration of 2ba" in caplog.text
    assert sorted((tmp_path / "run").glob("*.pt")) == saved
    caplog.clear()
    assert main([str(path), "max_duration=3ba"]) == 0, "it goes on where there is more to do"
    assert "already finished" not in caplog.text
    assert len(list((tmp_path / "run").glob("*.pt"))) > len(saved)


def test_finished_checkpoint_that_is_loaded_by_hand_is_bad_input(
    main: Any, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(corpus, tmp_path)
    assert main([str(path)]) == 0
    last = tmp_path / "run" / "ep0-ba2-rank0.pt"
    again = [f"load_path={last}", "autoresume=false", "save_folder=null"]
    assert main([str(path), *again]) == 2
    assert "patch_algorithm.train: The max_duration" in capsys.readouterr().err


def test_an_error_stops_a_run_before_anything_is_built(
    main: Any, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(corpus, tmp_path)
    assert main([str(path), "algorithms.patch_level.raito=0.5", "train_loader.dataset.max_seq_len=8"]) == 2
    told = capsys.readouterr().err
    assert "algorithms.patch_level.raito is not a known key. Did you mean ratio?" in " ".join(told.split())
    assert "nothing was built" in told
    assert f"doctor --here {path} algorithms.patch_level.raito=0.5 " in told, "with the overrides"
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()


def test_a_folder_that_may_not_be_searched_is_bad_input(
    main: Any,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/root/runs")

    monkeypatch.setattr("patch_algorithm.preflight.check_start", refuse)
    assert main([str(write_run(corpus, tmp_path))]) == 2
    told = capsys.readouterr().err
    assert told == "patch_algorithm.train: [Errno 13] Permission denied: '/root/runs'\n"


def test_warnings_are_told_once(
    main: Any,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And neither by other ranks, nor again by the algorithm."""
    cosine = "scheduler={name: cosine_with_warmup, t_warmup: 0ba}"
    path = write_run(corpus, tmp_path)
    assert main([str(path), cosine]) == 0
    first = capsys.readouterr().err + caplog.text
    assert first.count("no-warmup") == 1
    assert first.count("token-stage-short") == 1
    monkeypatch.setattr("llmfoundry.command_utils.train_from_yaml", lambda *args: None)
    monkeypatch.setenv("RANK", "1")
    assert main([str(path), cosine]) == 0
    assert "no-warmup" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "node"),
    [({"GROUP_RANK": "3"}, "3"), ({"GROUP_RANK": "3", "NODE_RANK": "1"}, "1"), ({}, None)],
    ids=["torchrun", "composer", "neither"],
)
def test_rank_of_the_node_under_every_launcher(
    given: dict[str, str], node: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for name in (*OF_A_LAUNCHER, "OMP_WAIT_POLICY"):
            patch.setenv(name, "")  # so that what the script sets is put back
            patch.delenv(name)
        for name, value in given.items():
            patch.setenv(name, value)
        train._settle_process()
        assert os.environ.get("NODE_RANK") == node


def test_threads_of_a_rank_are_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores that a container may use: a quota leaves fewer than the machine shows."""
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    with monkeypatch.context() as patch:
        for name in (*OF_A_LAUNCHER, "OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
            patch.setenv(name, "")
            patch.delenv(name)
        patch.setenv("LOCAL_WORLD_SIZE", "2")
        train._settle_process()
        assert os.environ["OMP_NUM_THREADS"] == "2"


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "composer": ["-m", "composer.cli", "-n", "2"],
    "composer -m": ["-m", "composer.cli", "-n", "2", "-m"],
}


@pytest.mark.launcher
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_train_and_are_queued_again(launcher: str, corpus: Path, tmp_path: Path) -> None:
    changes = {"device_train_microbatch_size": 2}
    path = write_run(corpus, tmp_path, **changes)
    env = {name: value for name, value in os.environ.items() if name not in OF_A_LAUNCHER}
    script = "patch_algorithm.train" if launcher.endswith("-m") else str(TRAIN)
    command = [sys.executable, *LAUNCHERS[launcher], script, str(path)]
    for finished in (False, True):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "Traceback" not in done.stderr
        assert done.stderr.count("already finished") == finished
        assert list((tmp_path / "run").glob("*ba2*.pt"))


@pytest.mark.parametrize(
    ("devices", "launched", "told"), [(8, False, True), (8, True, False), (1, False, False)]
)
def test_idle_gpus_are_announced(
    devices: int,
    launched: bool,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "8")
    train._announce_idle_gpus("patch-level train")
    assert ("8 GPUs" in capsys.readouterr().err) == told
