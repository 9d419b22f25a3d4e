"""Checks of the learning rate and of what the optimizer does with it."""

from __future__ import annotations

from patch_algorithm.checks.finding import Finding, finding
from patch_algorithm.checks.rate_curve import RateCurve

__all__ = ["check_rate", "check_weight_decay"]

_ENOUGH_AT_SWITCH = 0.75
_STILL_AT_PEAK = 0.98
_LOW_AT_END = 0.5
_WARM = 0.5
_LONGEST_WARMUP = 0.25
_MOST_DECOUPLED_DECAY = 1e-3

_ONE_PLATEAU = (
    "Use scheduler: {name: warmup_stable_decay, t_warmup: ..., t_decay: 0.1dur}, or per_stage with a "
    "schedule for each stage (docs/schedules.md)."
)


def check_rate(curve: RateCurve, resets_optimizer: bool = False) -> list[Finding]:
    """Checks the learning rate at the start, at the switch and at the end.

    Args:
        curve: What the run's own scheduler does.
        resets_optimizer: Whether the optimizer's state is set to zero at the switch.
    """
    if curve.peak <= 0:
        return [
            finding(
                "rate-zero-early",
                f"scheduler {curve.scheduler}: the learning rate is zero throughout the run.",
                "Nothing is learned.",
                "Check the times of the scheduler against max_duration.",
            )
        ]
    found = [_at_start(curve), _at_end(curve)]
    if 0 < curve.switch < curve.end:
        found += [_at_switch(curve), _after_reset(curve) if resets_optimizer else None]
    return [one for one in found if one is not None]


def _at_start(curve: RateCurve) -> Finding | None:
    if curve.peak_at > _LONGEST_WARMUP * curve.end:
        return finding(
            "warmup-long",
            f"scheduler {curve.scheduler}: the learning rate reaches its peak at step {curve.peak_at:,} of "
            f"{curve.end:,}.",
            "Both papers warm up for 2,000 of 20,000 to 180,000 steps. A longer warm-up leaves little or "
            "nothing of the run at the full rate.",
            "Shorten t_warmup to a few per cent of the run, such as '0.02dur'.",
        )
    if curve.start < _WARM * curve.peak:
        return None
    return finding(
        "no-warmup",
        f"scheduler {curve.scheduler}: the first step is taken at {_percent(curve.start / curve.peak)} of "
        "the peak learning rate.",
        "Adam's first steps rest on almost no statistics. Both papers warm up for 2,000 steps "
        "(arXiv 2407.12665, 2605.06546), MPT-1B for 100.",
        "Give the scheduler a t_warmup of one to a few per cent of the run.",
    )


def _at_switch(curve: RateCurve) -> Finding | None:
    left = curve.token_peak / curve.peak
    if left >= _STILL_AT_PEAK:
        return None
    check = "rate-low-at-switch" if left < _ENOUGH_AT_SWITCH else "rate-decays-in-patch-stage"
    return finding(
        check,
        f"scheduler {curve.scheduler}: {_percent(left)} of the peak learning rate is left at the switch "
        f"(step {curve.switch:,} of {curve.end:,}).",
        "The model has to learn again at the switch. The papers start the token stage at the full rate: a "
        "new cosine (arXiv 2407.12665), or a plateau across the switch (2605.06546).",
        _ONE_PLATEAU,
    )


def _after_reset(curve: RateCurve) -> Finding | None:
    if curve.token_peak <= 0 or curve.at_switch < _WARM * curve.token_peak:
        return None
    return finding(
        "no-warmup-after-reset",
        f"algorithms.patch_level.on_switch is reset, but the first token step is taken at "
        f"{_percent(curve.at_switch / curve.token_peak)} of the token stage's peak learning rate.",
        "Adam starts without statistics after a reset, as at the beginning of a run. The paper warms up "
        "again for 2,000 steps (arXiv 2407.12665). In a published run of 3,000 steps, reset cost 0.089 "
        "nats more than carry (AOMTS, one run each).",
        "Use scheduler: {name: per_stage, scheduler: {name: cosine_with_warmup, ...}}, or on_switch: carry.",
    )


def _at_end(curve: RateCurve) -> Finding | None:
    last = curve.last / curve.peak
    if curve.zero_from < 1:
        return finding(
            "rate-zero-early",
            f"scheduler {curve.scheduler}: the learning rate is zero from {_percent(curve.zero_from)} of the "
            "run on.",
            "The steps after that cost compute and change nothing.",
            "Let the schedule end with the run (t_max: 1dur), or shorten max_duration.",
        )
    still_rising = curve.peak_at >= _STILL_AT_PEAK * curve.end
    if last <= _LOW_AT_END or still_rising:
        return None
    return finding(
        "rate-high-at-end",
        f"scheduler {curve.scheduler}: {_percent(last)} of the peak learning rate is left at the end of the "
        "run.",
        "Much of the loss falls while the rate falls, so a run that ends on its plateau cannot be compared "
        "with one that ends its decay: in an independent replication (345M parameters) an apparent "
        "speed-up of 1.9 was about 1.2 between runs that had both ended their decay.",
        _ONE_PLATEAU,
    )


def check_weight_decay(optimizer: str, weight_decay: float | None, lr: float | None) -> list[Finding]:
    """Checks the weight decay of Composer's decoupled optimizers.

    Args:
        optimizer: llm-foundry's name of the optimizer, or its class's.
        weight_decay: Its ``weight_decay``.
        lr: Its peak learning rate.
    """
    decoupled = optimizer.lower().replace("_", "").startswith("decoupled")
    if not decoupled or weight_decay is None or weight_decay < _MOST_DECOUPLED_DECAY:
        return []
    meant = (
        ""
        if not lr
        else f" {weight_decay:g} * lr = {weight_decay * lr:g} is the equivalent of adamw's {weight_decay:g};"
    )
    return [
        finding(
            "weight-decay-decoupled",
            f"optimizer.weight_decay={weight_decay:g} with {optimizer}.",
            "Composer's decoupled optimizers do not multiply weight decay by the learning rate: every step "
            f"at the full rate removes {_percent(weight_decay)} of each weight. The papers' 0.1 is that of "
            "torch's AdamW, which removes lr * 0.1.",
            f"Set optimizer.weight_decay to weight_decay * lr:{meant} or use optimizer.name: adamw.",
        )
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
