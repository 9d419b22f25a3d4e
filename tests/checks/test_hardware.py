"""What only GPUs have, on GPUs, on CPUs, and where the run is for another machine."""

from __future__ import annotations

import dataclasses

import pytest

from patch_algorithm.checks import Severity
from patch_algorithm.checks.hardware import HardwareFacts, check_hardware

FLASH = ("model.attn_config.attn_impl=flash",)
GPU_RUN = HardwareFacts(
    has_gpu=True,
    judge_cpu=True,
    flash_installed=True,
    flash_keys=FLASH,
    is_mpt=True,
    fused_loss="model.loss_fn=fused_crossentropy",
    precision="amp_bf16",
    microbatch_auto=True,
    fused_patch_loss=True,
)
CPU_RUN = HardwareFacts(has_gpu=False, judge_cpu=True, flash_installed=False)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (GPU_RUN, []),
        (CPU_RUN, []),
        (
            dataclasses.replace(GPU_RUN, flash_installed=False),
            ["flash-attention-missing", "fused-loss-missing"],
        ),
        (dataclasses.replace(CPU_RUN, precision="amp_bf16"), ["precision-on-cpu"]),
        (dataclasses.replace(CPU_RUN, microbatch_auto=True), ["microbatch-auto-on-cpu"]),
        (dataclasses.replace(CPU_RUN, flash_keys=FLASH), ["flash-attention-on-cpu"]),
        (dataclasses.replace(CPU_RUN, fused_loss="model.loss_fn"), ["fused-loss-missing"]),
        (dataclasses.replace(CPU_RUN, fused_patch_loss=True), ["loss-kernel-on-cpu"]),
    ],
)
def test_on_the_machine_of_the_run(facts: HardwareFacts, expected: list[str]) -> None:
    assert [one.id for one in check_hardware(facts)] == expected


def test_a_file_for_another_machine_is_skipped_not_failed() -> None:
    (found,) = check_hardware(
        dataclasses.replace(GPU_RUN, has_gpu=False, judge_cpu=False, flash_installed=False)
    )
    assert (found.id, found.severity) == ("needs-gpu", Severity.skipped)
    for word in ("amp_bf16", "auto", "attn_impl=flash", "fused_crossentropy", "loss_kernel=triton"):
        assert word in found.found


def test_the_advice_is_the_models() -> None:
    (mpt, _) = check_hardware(dataclasses.replace(GPU_RUN, flash_installed=False))
    assert "rope_impl: hf" in mpt.fix
    hf = dataclasses.replace(GPU_RUN, flash_installed=False, is_mpt=False, fused_loss=None)
    assert "attn_implementation: sdpa" in check_hardware(hf)[0].fix
