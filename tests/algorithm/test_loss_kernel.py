"""The argument ``loss_kernel``: what it refuses, says, and that runs by either kernel are the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patch_algorithm import PatchLevel
from patch_algorithm.algorithm import loss_kernel
from patch_algorithm.algorithm.loss_kernel import prepare_kernel
from patch_algorithm.loss import kernels, patch_cross_entropy
from tests.algorithm.test_bad_input import assert_refused
from tests.runs.short import make_model, make_rows, run
from tests.support import metrics

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_an_unknown_kernel_is_named() -> None:
    with pytest.raises(ValueError, match="loss_kernel='cuda' is not one of auto, torch, triton"):
        PatchLevel(loss_kernel="cuda")
    with pytest.raises(ValueError, match="'cuda' is not one of auto, torch, triton"):
        patch_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.int64), kernel="cuda")


def test_without_a_gpu_triton_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows = make_rows(8, 32)
    message = r"loss_kernel='triton'.*CUDA device.*on cpu.*'torch' or 'auto'"
    assert_refused(rows, PatchLevel(k=4, loss_kernel="triton"), message)
    algorithm = PatchLevel(k=1, loss_kernel="triton")  # which has no patch loss
    run(rows, [algorithm], model=make_model(max_seq_len=8), max_duration="1ba")


def test_without_triton_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the package triton is not installed"):
        prepare_kernel("triton", "gpu")


def test_a_gpu_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match=r"compute capability 8\.0, and this GPU has 7\.5"):
        prepare_kernel("triton", "gpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    prepare_kernel("triton", "gpu")


def test_on_a_gpu_auto_says_that_another_can_be_chosen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for kernel, device in [("auto", "cpu"), ("torch", "gpu"), ("auto", "mps"), ("auto", "gpu")]:
        prepare_kernel(kernel, device)
    assert capsys.readouterr().err == "", "of a GPU that cannot run them, too"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    prepare_kernel("auto", "gpu")
    assert "loss_kernel: triton" in capsys.readouterr().err


def test_auto_takes_the_fused_kernels_on_cuda_only_with_a_timing_on_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not kernels.FUSED_BY_DEFAULT or list(RESULTS.glob("*loss-cuda*"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "FUSED_BY_DEFAULT", False)
    assert kernels.chosen_kernel("auto", torch.device("cuda"), torch.bfloat16) == "torch"
    monkeypatch.setattr(kernels, "FUSED_BY_DEFAULT", True)
    assert kernels.chosen_kernel("auto", torch.device("cuda"), torch.bfloat16) == "triton"
    assert kernels.chosen_kernel("auto", torch.device("cuda"), torch.float64) == "torch"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert kernels.chosen_kernel("auto", torch.device("cuda"), torch.bfloat16) == "torch"
    assert kernels.chosen_kernel("auto", torch.device("cpu"), torch.bfloat16) == "torch"


def test_the_argument_reaches_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    from patch_algorithm.algorithm import patch_run

    asked: list[object] = []

    def note(*args: object, **options: object) -> object:
        asked.append(options.pop("kernel"))
        return patch_cross_entropy(*args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(patch_run, "patch_cross_entropy", note)
    monkeypatch.setattr(loss_kernel, "check_kernel", lambda kernel, device: None)
    algorithm = PatchLevel(k=4, ratio=0.5, loss_kernel="triton")
    run(make_rows(8, 32), [algorithm], model=make_model(max_seq_len=8), max_duration="2ba")
    assert set(asked) == {"triton"}


def losses(kernel: str) -> list[float]:
    """Logged losses and accuracies of a short run."""
    algorithm = PatchLevel(k=4, ratio=0.5, target_weights="inverse", loss_kernel=kernel)
    trainer = run(make_rows(8, 32), [algorithm], model=make_model(max_seq_len=8), max_duration="4ba")
    return [*metrics(trainer, "patch_level/loss"), *metrics(trainer, "patch_level/token_accuracy")]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_run_by_the_fused_kernels_is_the_run_by_torch() -> None:
    script = f"from {__name__} import losses; print(losses('torch')); print(losses('triton'))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    by_torch, by_triton = (eval(line) for line in done.stdout.splitlines()[-2:])
    assert len(by_torch) > 2
    assert by_triton == pytest.approx(by_torch, rel=1e-6)
