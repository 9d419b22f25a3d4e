"""Checks of what the stages of a run are: patch size, share of the run, and the tokens to pay for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from patch_algorithm.checks.finding import Finding, finding

__all__ = ["BREAK_EVEN", "check_budget", "check_stage_choice", "loss_difference"]

_HIGHEST_RATIO = 0.8
_HIGHEST_SHARE_OF_COMPUTE = 0.5
_LARGEST_K = 8
_FEWEST_TOKEN_STEPS = 100
_FEWEST_TOKEN_STEPS_AFTER_RESET = 1000

BREAK_EVEN = 335
"""Tokens per parameter from which on patches gain on equal data, by :func:`loss_difference`."""
_FITTED = (122, 973)


def loss_difference(tokens_per_parameter: float) -> float:
    """Expected loss of a patch run minus that of the token-only run on the same data, in nats.

    Least squares over the seven points of arXiv 2407.12665, tables 3 and 4 (k=4, ratio 2/3, 122 to 973
    tokens per parameter, one run each); the residual is 0.0025.
    """
    return 0.1368 - 0.02354 * math.log(tokens_per_parameter)


def check_stage_choice(
    ks: Sequence[int],
    switch: int | None,
    end: int | None,
    resets_optimizer: bool = False,
    constant_compute: bool = False,
) -> list[Finding]:
    """Checks the patch sizes, and how much of the run is trained in patches.

    Args:
        ks: Tokens per patch of every patch stage.
        switch: The first step of the token stage; ``None`` if not known.
        end: Steps of the run; ``None`` if not known.
        resets_optimizer: Whether the optimizer's state is set to zero at the switch.
        constant_compute: Whether steps of all stages compute equally much.
    """
    found = [_patch_size(max(ks))] if ks and max(ks) > _LARGEST_K else []
    if not ks or switch is None or not end:
        return found
    if switch >= end:
        return [*found, _no_switch(switch, end)]
    share = switch / end
    if constant_compute and share > _HIGHEST_SHARE_OF_COMPUTE:
        found.append(_share_of_compute(share))
    elif not constant_compute and share > _HIGHEST_RATIO:
        found.append(_ratio(share))
    fewest = _FEWEST_TOKEN_STEPS_AFTER_RESET if resets_optimizer else _FEWEST_TOKEN_STEPS
    if end - switch < fewest:
        found.append(_short(end - switch, resets_optimizer))
    return found


def _patch_size(k: int) -> Finding:
    return finding(
        "k-high",
        f"algorithms.patch_level: patches of k={k} tokens.",
        "In the paper's ablation (370M parameters, 90 billion tokens) k=2 and k=4 are practically equal, k=8 "
        "is about 0.03 and k=16 about 0.05 nats worse (read off figure 5 of arXiv 2407.12665).",
        "Use k: 4, or stages that go down to it: [{k: 16, until: 0.2}, {k: 4, until: 0.6}].",
    )


def _ratio(ratio: float) -> Finding:
    return finding(
        "ratio-high",
        f"algorithms.patch_level: {100 * ratio:.3g} % of the run is trained in patches.",
        "On fixed data the loss rises quickly above 0.75 (arXiv 2407.12665, figure 6); the 370M model of "
        "table 1 is better than its baseline at 1/2 and 2/3, and worse at 4/5.",
        'Use ratio: "2/3", or less if data is scarce.',
    )


def _share_of_compute(share: float) -> Finding:
    return finding(
        "ratio-high",
        f"algorithms.patch_level: {100 * share:.3g} % of the run's steps, and so of its compute, are trained "
        "in patches.",
        "At equal compute token superposition is best at 0.2 to 0.4 of the steps. At 0.7, s=6, the loss is "
        "0.02 nats above that, and at 0.9 above the baseline (arXiv 2605.06546, table 4: 270M parameters).",
        "Use a ratio of 0.3 of the steps.",
    )


def _short(steps: int, resets: bool) -> Finding:
    after = " after a reset of the optimizer" if resets else ""
    return finding(
        "token-stage-short",
        f"The token stage has {steps:,} step{'' if steps == 1 else 's'}{after}.",
        "The loss is high right after the switch. The paper's 370M run passed its baseline after about three "
        "quarters of a token stage of 60,000 steps.",
        "Lengthen the run or lower ratio" + (", or use on_switch: carry." if resets else "."),
    )


def _no_switch(switch: int, end: int) -> Finding:
    return finding(
        "no-switch",
        f"The switch at step {switch:,} is not before the end of the run at step {end:,}.",
        "The run ends as a patch model, which cannot generate text.",
        "Lower algorithms.patch_level.ratio, or lengthen max_duration.",
    )


def check_budget(tokens: float | None, parameters: int | None) -> list[Finding]:
    """Says what is known of the data that a run has for its size.

    Args:
        tokens: Raw tokens of the run.
        parameters: Parameters of the model.
    """
    if not tokens or not parameters or tokens / parameters >= BREAK_EVEN:
        return []
    per_parameter = tokens / parameters
    outside = "" if per_parameter >= _FITTED[0] else f", which extrapolates below its {_FITTED[0]}"
    size = "of the order of" if outside else "about"
    small = " Nothing below about 100M parameters is known to gain." if parameters < 1e8 else ""
    return [
        finding(
            "tokens-per-parameter",
            f"{tokens:.3g} tokens for {parameters:.3g} parameters: {per_parameter:.3g} tokens per parameter.",
            f"On equal data expect a loss {size} {loss_difference(per_parameter):.2f} nats above the "
            "token-only run's, for about half its compute: a fit of the paper's seven points (k=4, ratio "
            f"2/3, one run each){outside}. It breaks even at {BREAK_EVEN} tokens per parameter.{small}",
            "For a gain at equal compute, train on more tokens; `patch-level plan` compares the two.",
        )
    ]
