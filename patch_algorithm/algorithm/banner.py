"""What a run is about to do, in plain words."""

from __future__ import annotations

from composer.core import Time

from patch_algorithm.stages.plan import StagePlan

__all__ = ["banner"]


def banner(plan: StagePlan, T: int, stage: int, end: Time, patch_inputs: bool = True) -> str:
    """Describes the stages of a run.

    Args:
        plan: What the run has settled on.
        T: Raw tokens in a row of the data set.
        stage: The stage that the run is, or starts, in.
        end: The run's ``max_duration``.
        patch_inputs: Whether positions read patches in the patch stages.
    """
    L = plan.seq_len if plan.seq_len is not None else T
    lines = [f"patch_level: {plan}, run ends at {end.to_timestring()}"]
    token_T = min(T, L)
    positions = token_T
    for entry in plan.stages[stage:]:
        k, K = entry.k, entry.k if patch_inputs else 1
        patch_T = min(T, K * L)
        positions = min(positions, patch_T // K)
        reads = f"{k} tokens" if patch_inputs else "one token"
        lines.append(
            f"  patch stage, until {entry.until.to_timestring()}: {_rows(T, patch_T)} {patch_T // K} "
            f"positions, each reading {reads} and scored on the {k} tokens "
            f"{'of the next patch' if patch_inputs else 'that follow'}"
        )
    switch = plan.switch
    in_patches = switch is not None and stage < len(plan.stages)
    lines.append(
        f"  token stage, {f'from {switch.to_timestring()}' if switch and in_patches else 'from here on'}: "
        f"{_rows(T, token_T)} {token_T} positions"
    )
    if in_patches and patch_inputs:
        lines.append(_compute(plan, stage, end))
    if in_patches and positions < token_T:
        lines.append(
            f"  note: at the switch positions per row grow from {positions} to {token_T}, and the memory for "
            f"a row with them. Rows of k*seq_len={plan.stages[-1].k * L} tokens would keep it constant."
        )
    return "\n".join(lines)


def _compute(plan: StagePlan, stage: int, end: Time) -> str:
    costs = ", ".join(f"1/{k}" for k in dict.fromkeys(entry.k for entry in plan.stages[stage:]))
    line = f"  compute: a patch step costs {costs} of a token step on the same raw tokens"
    lengths = [end, *([plan.length] if plan.length is not None else [])]
    known = [n for n in lengths if all(entry.until.unit == n.unit for entry in plan.stages)]
    if not known:
        return line
    share, before = 1.0, 0.0
    for entry in plan.stages:
        until = min(entry.until.value / known[0].value, 1.0)
        share -= (until - before) * (1 - 1 / entry.k)
        before = until
    return f"{line}; the whole run {share:.2f} of token-only training"


def _rows(T: int, cut: int) -> str:
    if T == cut:
        return f"a row of {T} raw tokens is"
    return f"a row of {T} raw tokens is cut into {T // cut} of {cut}, each of"
