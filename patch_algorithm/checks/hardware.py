"""Checks of what a configuration asks of the device and of the packages for it."""

from __future__ import annotations

from dataclasses import dataclass

from patch_algorithm.checks.finding import Finding, finding, skipped

__all__ = ["HardwareFacts", "check_hardware"]

_FIX_FLASH = (
    "Install the extra: uv pip install 'patch-algorithm[gpu]'. Or set model.attn_config.attn_impl: torch, "
    "and with rope: true also rope_impl: hf."
)
_FIX_FLASH_HF = (
    "Install the extra: uv pip install 'patch-algorithm[gpu]'. Or set model.attn_implementation: sdpa."
)


@dataclass(frozen=True)
class HardwareFacts:
    """What is asked for, and what there is.

    Attributes:
        has_gpu: Whether the run's device is a GPU.
        judge_cpu: Whether what only GPUs have is an error on a CPU; else it is skipped, because the file may
            be meant for another machine.
        flash_installed: Whether flash-attn can be imported.
        flash_keys: Keys that ask for flash attention, with their values.
        is_mpt: Whether the model is llm-foundry's MPT.
        fused_loss: Whether the token stage's loss is flash-attn's, and the key that says so.
        fused_patch_loss: Whether ``patch_level.loss_kernel`` asks for the fused kernels.
        precision: Composer's name of the precision.
        microbatch_auto: Whether the microbatch is found by running out of memory.
    """

    has_gpu: bool
    judge_cpu: bool
    flash_installed: bool
    flash_keys: tuple[str, ...] = ()
    is_mpt: bool = False
    fused_loss: str | None = None
    fused_patch_loss: bool = False
    precision: str = "fp32"
    microbatch_auto: bool = False


def check_hardware(facts: HardwareFacts) -> list[Finding]:
    """Checks flash attention, the fused loss, precision and microbatch against the device."""
    if facts.has_gpu:
        return _missing_packages(facts)
    needed = _on_cpu(facts)
    if facts.judge_cpu or not needed:
        return needed
    asked = ", ".join(one.found.rstrip(".") for one in needed)
    return [skipped("needs-gpu", f"Not checked, because this machine has no GPU: {asked}.")]


def _missing_packages(facts: HardwareFacts) -> list[Finding]:
    if facts.flash_installed:
        return []
    found: list[Finding] = []
    if facts.flash_keys:
        found.append(
            finding(
                "flash-attention-missing",
                f"{', '.join(facts.flash_keys)}, but flash-attn is not installed.",
                "Without it llm-foundry ends in a long traceback (NameError: name 'bert_padding' is not "
                "defined).",
                _FIX_FLASH if facts.is_mpt else _FIX_FLASH_HF,
            )
        )
    if facts.fused_loss is not None:
        found.append(_fused_loss(facts.fused_loss))
    return found


def _fused_loss(key: str) -> Finding:
    return finding(
        "fused-loss-missing",
        f"{key}, but flash-attn is not installed.",
        "llm-foundry takes the fused loss of the token stage from flash-attn, and stops without it.",
        "Set model.loss_fn: torch_crossentropy, or install the extra `gpu`.",
    )


def _on_cpu(facts: HardwareFacts) -> list[Finding]:
    found: list[Finding] = []
    if facts.precision not in ("fp32", "Precision.FP32"):
        found.append(
            finding(
                "precision-on-cpu",
                f"precision={facts.precision}.",
                "On a CPU, Composer trains only in fp32.",
                "Set precision: fp32.",
            )
        )
    if facts.microbatch_auto:
        found.append(
            finding(
                "microbatch-auto-on-cpu",
                "device_train_microbatch_size=auto.",
                "Composer finds the microbatch by running out of GPU memory, and refuses to on a CPU.",
                "Set a number of rows.",
            )
        )
    if facts.flash_keys:
        found.append(
            finding(
                "flash-attention-on-cpu",
                f"{', '.join(facts.flash_keys)}.",
                "flash-attn runs only on GPUs.",
                "Set model.attn_config.attn_impl: torch, and with rope: true also rope_impl: hf."
                if facts.is_mpt
                else "Set model.attn_implementation: sdpa.",
            )
        )
    if facts.fused_loss is not None and not facts.flash_installed:
        found.append(_fused_loss(facts.fused_loss))
    if facts.fused_patch_loss:
        found.append(
            finding(
                "loss-kernel-on-cpu",
                "patch_level.loss_kernel=triton.",
                "The fused kernels of the patch loss run only on CUDA GPUs, and the run stops without one.",
                "Set loss_kernel: auto.",
            )
        )
    return found
