"""What a run is about to do, in plain words."""

from __future__ import annotations

import logging
import sys

from composer.core import Time
from composer.utils import dist

from patch_algorithm.stages import StagePlan

__all__ = ["announce", "banner"]

log = logging.getLogger("patch_algorithm")


def announce(text: str) -> None:
    """Tells the user something once per job, wherever logging is set up or not.

    llm-foundry raises the level of its own loggers only, so that what a plugin logs at INFO is never
    seen; a run's stages are worth a line on standard error.
    """
    if dist.get_global_rank() != 0:
        return
    if log.isEnabledFor(logging.INFO):
        log.info(text)
    else:
        sys.stderr.write(f"{text}\n")


def banner(plan: StagePlan, T: int, in_patch_stage: bool, end: Time) -> str:
    """Describes the stages of a run.

    Args:
        plan: What the run has settled on.
        T: Raw tokens in a row of the data set.
        in_patch_stage: Whether the run is, or starts, in its patch stage.
        end: The run's ``max_duration``.
    """
    k, L = plan.k, plan.seq_len if plan.seq_len is not None else T
    switch = plan.switch.to_timestring()
    lines = [f"patch_level: {plan}, run ends at {end.to_timestring()}"]
    patch_T, token_T = min(T, k * L), min(T, L)
    if in_patch_stage:
        lines.append(
            f"  patch stage, until {switch}: {_rows(T, patch_T)} {patch_T // k} positions, each reading {k} "
            f"tokens and scored on the {k} tokens of the next patch"
        )
    lines.append(
        f"  token stage, {f'from {switch}' if in_patch_stage else 'from here on'}: "
        f"{_rows(T, token_T)} {token_T} positions"
    )
    if in_patch_stage:
        lines.append(f"  compute: a patch step costs 1/{k} of a token step on the same raw tokens")
        if plan.switch.unit == end.unit or plan.length is not None:
            length = end if plan.switch.unit == end.unit or plan.length is None else plan.length
            share = min(plan.switch.value / length.value, 1.0)
            lines[-1] += f"; the whole run {share / k + 1 - share:.2f} of token-only training"
        if patch_T // k < token_T:
            lines.append(
                f"  note: at the switch positions per row grow from {patch_T // k} to {token_T}, and "
                f"the memory for a row with them. Rows of k*seq_len={k * L} tokens would keep it constant."
            )
    return "\n".join(lines)


def _rows(T: int, cut: int) -> str:
    if T == cut:
        return f"a row of {T} raw tokens is"
    return f"a row of {T} raw tokens is cut into {T // cut} of {cut}, each of"
