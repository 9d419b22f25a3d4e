"""The texts at the end of a run: what its stages have cost, and what they have learned."""

from __future__ import annotations

from collections.abc import Mapping

from patch_algorithm.common.tables import duration, table
from patch_algorithm.monitoring.stage_costs import RunRecord, StageRecord

__all__ = ["cost_table", "summary"]

_COSTS = ("stage", "steps", "raw tokens", "raw tokens/s", "positions/s", "TFLOP/s", "MFU", "peak memory")
_LOSSES = (
    "stage",
    "steps",
    "raw tokens",
    "positions",
    "raw tokens/s",
    "steps/s",
    "loss, first to last tenth",
)


def cost_table(record: RunRecord, flops_available: float) -> str:
    """The text of ``patch_monitor``.

    Args:
        record: The run.
        flops_available: FLOPs that all devices can do in a second; 0 if nobody can tell.
    """
    lines = ["patch_monitor"]
    lines += table([_COSTS, *(_costs(stage, flops_available) for stage in record.stages)])
    total = record.total
    lines += _comparison(record, f", {record.flops:.3g} FLOPs" if record.flops else "")
    lines.append(
        f"time: {duration(total.seconds)} of training, {duration(record.eval_seconds)} of evaluation"
    )
    return "\n  ".join(lines)


def summary(record: RunRecord, places: Mapping[str, str], note: str | None = None) -> str:
    """The text of ``stage_report``.

    Args:
        record: The finished run.
        places: Where what was saved lies, by its name.
        note: A last paragraph.
    """
    lines = ["Summary", *table([_LOSSES, *(_losses(stage) for stage in record.stages)])]
    lines += _comparison(record)
    if evaluations := _evaluations(record):
        lines.append(f"eval loss (token level): {evaluations}")
    lines += [f"{name}: {place}" for name, place in places.items()]
    if note:
        lines.append(note.strip())
    return "\n" + "\n  ".join(lines)


def _comparison(record: RunRecord, flops: str = "") -> list[str]:
    lines = []
    if record.speedup is not None:
        lines.append(f"speed: the patch stage read raw tokens {record.speedup:.2f} times as fast")
    lines.append(
        f"compute: {record.compute_share():.3f} of token-only training on the same raw tokens{flops}"
    )
    return lines


def _costs(stage: StageRecord, flops_available: float) -> tuple[str, ...]:
    speed = stage.speed
    flops = speed.per_second(speed.flops)
    return (
        stage.name,
        f"{stage.total.steps:,}",
        f"{stage.total.tokens:,}",
        f"{speed.per_second(speed.tokens):,.0f}",
        f"{speed.per_second(speed.positions):,.0f}",
        f"{flops / 1e12:.3g}" if flops else "-",
        f"{flops / flops_available:.1%}" if flops and flops_available else "-",
        f"{stage.peak_memory / 1e9:.2f} GB",
    )


def _losses(stage: StageRecord) -> tuple[str, ...]:
    speed = stage.speed
    first, last = stage.losses.tenths()
    return (
        stage.name,
        f"{stage.total.steps:,}",
        f"{stage.total.tokens:,}",
        f"{stage.total.positions:,.0f}",
        f"{speed.per_second(speed.tokens):,.0f}",
        f"{speed.per_second(speed.steps):.2f}",
        f"{first:.3f} -> {last:.3f}",
    )


def _evaluations(record: RunRecord) -> str:
    parts = []
    if (loss := record.eval_at(record.switch)) is not None:
        parts.append(f"{loss:.3f} at the switch (batch {record.switch})")
    latest = [stage.last_eval for stage in record.stages if stage.last_eval is not None]
    if latest:
        at_end = latest[-1].step == record.stages[-1].last_step
        when = "at the end" if at_end else "at the last evaluation"
        parts.append(f"{latest[-1].loss:.3f} {when} (batch {latest[-1].step})")
    return ", ".join(parts)
