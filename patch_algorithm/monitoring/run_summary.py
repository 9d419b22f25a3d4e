"""What a run has done, stage by stage, in plain numbers, and the text and the verdict made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from patch_algorithm.monitoring.learning_check import loss_drop
from patch_algorithm.monitoring.stage_costs import RunRecord, StageRecord

__all__ = ["summary"]

_WIDTHS = (9, 18, 18, 14, 9)  # 999,999,999,999 raw tokens fit


def summary(record: RunRecord, places: Mapping[str, str], note: str | None = None) -> str:
    """The text that ends a run.

    Args:
        record: The finished run.
        places: Where what was saved lies, by its name.
        note: A last paragraph.
    """
    titles = ("stage", "steps", "raw tokens", "positions", "raw tokens/s", "steps/s")
    lines = ["", "Summary", f"  {_columns(titles)}   loss, first and last tenth"]
    lines += [f"  {_stage_line(stage)}" for stage in record.stages]
    lines.append(
        f"  compute: {record.compute_share:.2f} of token-only training on the same raw tokens "
        "(positions / raw tokens)"
    )
    if record.switch is not None:
        patch, token = record.stages[0], record.stages[1]
        if token.tokens_per_second:
            faster = patch.tokens_per_second / token.tokens_per_second
            lines.append(f"  speed: the patch stage took in raw tokens {faster:.1f} times as fast")
    if record.evals:
        lines.append(f"  eval loss (token level): {_eval_line(record)}")
    lines += [f"  {name}: {place}" for name, place in places.items()]
    if note:
        lines.append(f"  {note.strip()}")
    return "\n".join(lines)


def _stage_line(stage: StageRecord) -> str:
    first, last = loss_drop(stage.losses)
    per_second = 1 / stage.step_seconds if stage.step_seconds else 0.0
    cells = (
        stage.name,
        f"{len(stage.losses):,}",
        f"{sum(stage.tokens):,}",
        f"{stage.positions:,}",
        f"{stage.tokens_per_second:,.0f}",
        f"{per_second:.2f}",
    )
    return f"{_columns(cells)}   {first:.3f} -> {last:.3f}"


def _columns(cells: Sequence[str]) -> str:
    return f"{cells[0]:<7}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells[1:], _WIDTHS, strict=True)
    )


def _eval_line(record: RunRecord) -> str:
    parts = []
    if (loss := record.eval_at(record.switch)) is not None:
        parts.append(f"{loss:.3f} at the switch (batch {record.switch})")
    last = record.evals[-1]
    when = "at the end" if last.batch == record.steps else "at the last evaluation"
    parts.append(f"{last.loss:.3f} {when} (batch {last.batch})")
    return ", ".join(parts)
