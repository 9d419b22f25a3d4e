"""Whether a finished run has learned something in every stage."""

from __future__ import annotations

from patch_algorithm.monitoring.stage_costs import RunRecord

__all__ = ["shortcomings"]


def shortcomings(record: RunRecord, required_drop: float) -> list[str]:
    """The stages in which a finished run has not learned enough.

    Args:
        record: The finished run.
        required_drop: How far, in nats, the mean loss of the last tenth of a stage must at least be below
            that of its first tenth.

    Returns:
        A sentence for each shortcoming; empty if there is none.
    """
    found = []
    for stage in record.stages:
        first, last = stage.losses.tenths()
        if not first - last >= required_drop:  # written so that NaN falls short, too
            found.append(
                f"The loss of the {stage.name} stage went from {first:.3f} (mean of its first tenth) to "
                f"{last:.3f} (last tenth); a drop of at least {required_drop} was required."
            )
    if record.switch is None:
        return found
    end = record.stages[-1].last_step
    at_switch, at_end = record.eval_at(record.switch), record.eval_at(end)
    for moment, loss, batch in (("switch", at_switch, record.switch), ("end", at_end, end)):
        if loss is None:
            found.append(
                f"There was no evaluation at the {moment} (batch {batch}): choose an eval_interval that "
                "divides it."
            )
    if at_switch is not None and at_end is not None and not at_end < at_switch:
        found.append(f"The eval loss at the end, {at_end:.3f}, is not below {at_switch:.3f} at the switch.")
    return found
