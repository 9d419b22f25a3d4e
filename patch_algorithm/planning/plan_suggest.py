"""A proposal for a budget of tokens, FLOPs or GPU-hours: patch size, ratio, length and schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from composer.core import Time, TimeUnit

from patch_algorithm.planning.costs import RunCost, StepShape, cost_of
from patch_algorithm.planning.costs_model import ModelFacts
from patch_algorithm.planning.plan_numbers import number
from patch_algorithm.planning.verdict import GAIN_FROM, NO_GAIN_BELOW, RESIDUAL, Answer, judge, small_models
from patch_algorithm.stages.plan import Stage, StagePlan

__all__ = ["Budget", "Suggestion", "suggest"]

_K = 4
_RATIO = 2 / 3
_SHORT_RATIO = 1 / 4
_FITTED_FROM = 122
_WARMUP = 2000
_MOST_PASSES = 6
_EQUAL_TOKENS = (
    "Every step of the proposal takes the same number of raw tokens, so it turns the run's constant_compute "
    "off, and its ratio is a share of tokens. This changes how often the weights are updated, not what the "
    "run computes."
)
_WITHOUT_PATCHES = (
    "Remove algorithms.patch_level from the file. If the data already has longer rows, keep it, max_seq_len "
    "and the batch, and set algorithms.patch_level: {k: 1}, which only cuts the rows (`--twin` writes that)."
)


@dataclass(frozen=True)
class Budget:
    """What a run may take; exactly one of the two.

    Attributes:
        tokens: Raw tokens that you have.
        flops: FLOPs, forward and backward.
        said: What the user has given, in words.
    """

    tokens: float | None = None
    flops: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Suggestion:
    """A proposal.

    Attributes:
        k: Tokens per patch; 1 for token-level training.
        ratio: Share of the run in patches, as the YAML has it.
        costs: Token-level training on the budget, and the proposal.
        reasons: Why, and what is not known.
        yaml: The keys to set.
    """

    k: int
    ratio: str
    costs: tuple[RunCost, RunCost]
    reasons: tuple[str, ...]
    yaml: str


def suggest(shape: StepShape, model: ModelFacts, budget: Budget) -> Suggestion:
    """Proposes how to spend a budget on a model.

    Args:
        shape: The step of a run of that model; its raw tokens a step are kept.
        model: The model.
        budget: What there is.

    Raises:
        ValueError: If the model cannot be counted, or the budget is less than a step.
    """
    if model.parameters is None or (budget.flops is not None and model.row_flops is None):
        raise ValueError(f"--suggest needs a model that can be built and counted here: {model.fault}.")
    k, ratio, reasons = _choice(model.parameters, budget)
    share = {"2/3": _RATIO, "1/4": _SHORT_RATIO}.get(ratio, 0.0)
    L = _context(shape, model)
    token_shape, patch_shape = (_reshaped(shape, size, L) for size in (1, _K))
    token = cost_of(token_shape, model, (_steps(token_shape, model, budget, 0.0),), "token-only")
    if k == 1:
        cost, used = replace(token, name="proposal: token-only"), token_shape
    else:
        steps = _steps(patch_shape, model, budget, share)
        cost = cost_of(
            patch_shape, model, (math.ceil(share * steps), steps), f"proposal: k={k}, ratio {ratio}"
        )
        used = patch_shape
    reasons = (*reasons, *_on_data(cost, token))
    if k > 1 and shape.plan.constant_compute:
        reasons = (*reasons, _EQUAL_TOKENS)
    if k > 1 and budget.flops is not None:
        reasons = (*reasons, _on_compute(cost, model.parameters))
    constant = shape.plan.constant_compute
    if k == 1 and shape.plan.stages:
        reasons = (*reasons, _WITHOUT_PATCHES)
    return Suggestion(k, ratio, (token, cost), reasons, _yaml(used, cost, k, ratio, L, constant))


def _choice(parameters: int, budget: Budget) -> tuple[int, str, tuple[str, ...]]:
    if parameters < NO_GAIN_BELOW:
        return (
            1,
            "0",
            (
                f"Train at token level. This model has {number(parameters)} parameters; below "
                f"{number(NO_GAIN_BELOW)} all that we know of is {small_models()}.",
            ),
        )
    if budget.tokens is None:
        return _K, "2/3", tuple(_for_compute(parameters))
    return _for_data(budget.tokens / parameters)


def _for_compute(parameters: int) -> Iterable[str]:
    yield (
        "k=4 and 2/3 of the tokens lie in the best range of both papers. The first found 2/3 best at fixed "
        "compute (370M parameters). The second recommends s of 4 to 8 and r of 0.2 to 0.4; 2/3 is r = 0.33. "
        "In the second, k=6 gained up to 0.006 nats more than k=4, and needs more text."
    )
    if parameters < GAIN_FROM:
        yield (
            "Whether it pays is not known for models between 5M and 100M parameters. Train the token-only "
            "twin as well."
        )


def _for_data(per_parameter: float) -> tuple[int, str, tuple[str, ...]]:
    from patch_algorithm.checks.stage_choice import BREAK_EVEN, loss_difference

    difference = loss_difference(per_parameter)
    fit = (
        f"By the paper's seven points (k=4, ratio 2/3) the difference is {difference:+.3f} nats on equal data"
    )
    at = f"{number(per_parameter)} tokens per parameter"
    if difference < -RESIDUAL:
        text = (
            f"{at} are beyond the break-even of {BREAK_EVEN}. {fit}, for half the compute. Those "
            "runs restarted the rate in each stage; the schedule below, token superposition's, has not been "
            "compared."
        )
        return _K, "2/3", (text,)
    if per_parameter >= _FITTED_FROM:
        text = (
            f"{at} are near or below the break-even of {BREAK_EVEN}. {fit}. A ratio of 1/4 costs less loss: "
            "on fixed data the paper found the best near 1/4 (370M parameters, 243 tokens per parameter, "
            "k=4), and it saves 19 % of the compute. If compute matters more than 0.01 to 0.03 nats, take "
            "2/3, which saves 50 %."
        )
        return _K, "1/4", (text,)
    text = (
        f"Train at token level if you have no more tokens: at {at} expect patches to end higher on equal "
        f"data, of the order of {difference:+.2f} nats with ratio 2/3. If compute is the limit and more text "
        "is available, use --flops or --gpu-hours."
    )
    return 1, "0", (text,)


def _context(shape: StepShape, model: ModelFacts) -> int:
    if shape.plan.stages:
        return shape.plan.seq_len or shape.row_tokens
    return min(shape.row_tokens, model.context or shape.row_tokens)


def _reshaped(shape: StepShape, k: int, L: int) -> StepShape:
    """The step with rows of k * L tokens and as many raw tokens."""
    rows = max(round(shape.rows * shape.row_tokens / (k * L)), 1)
    stages = (Stage(k, Time(1, TimeUnit.BATCH)),) if k > 1 else ()
    return replace(shape, row_tokens=k * L, rows=rows, plan=StagePlan(stages, L, None))


def _steps(shape: StepShape, model: ModelFacts, budget: Budget, share: float) -> int:
    tokens = shape.rows * shape.row_tokens
    if budget.tokens is not None:
        steps = budget.tokens / tokens
    else:
        stages = cost_of(shape, model, (1, 2) if shape.plan.stages else (1,), "one step each").stages
        patch, token = stages[0].flops or 0.0, stages[-1].flops or 0.0
        steps = (budget.flops or 0.0) / (share * patch + (1 - share) * token)
    if steps < 2:
        raise ValueError(f"--suggest: {budget.said} is less than two steps of {tokens:,} tokens.")
    return int(steps)


def _on_data(cost: RunCost, token: RunCost) -> Iterable[str]:
    if cost.raw_tokens > token.raw_tokens:
        yield (
            f"It takes {number(cost.raw_tokens)} raw tokens where token-only training of the same compute "
            f"takes {number(token.raw_tokens)}."
        )
    if cost.passes is not None and cost.passes > 1:
        text = f"The data is read {cost.passes:.1f} times."
        if cost.passes <= _MOST_PASSES:
            text += " The paper's 370M runs on 60 billion tokens gained at six passes (table 2)."
        else:
            text += " Nothing is known about more than six passes."
        yield text


def _on_compute(cost: RunCost, parameters: int) -> str:
    expected = {
        Answer.yes: "Expect it to end below",
        Answer.no: "Do not expect it to end below",
        Answer.unknown: "It is not known whether it ends below",
    }[judge(cost, parameters).equal_compute]
    return f"{expected} token-only training of the same compute, by the public pairs that the verdict lists."


def _yaml(shape: StepShape, cost: RunCost, k: int, ratio: str, L: int, constant_compute: bool) -> str:
    off = ", constant_compute: false" if constant_compute else ""
    warmup = min(_WARMUP, max(cost.steps // 20, 1))
    lines = [f"max_duration: {cost.steps}ba"]
    if k > 1:
        lines += [
            "algorithms:",
            f'  patch_level: {{k: {k}, ratio: "{ratio}", seq_len: {L}, on_switch: carry{off}}}',
        ]
    lines += [
        "train_loader:",
        f"  dataset: {{max_seq_len: {shape.row_tokens}}} # tokens of a row: k * the context",
        f"global_train_batch_size: {shape.rows} # {shape.rows * shape.row_tokens:,} raw tokens a step",
        "scheduler: # the rate stays up over the switch and ends its own decay",
        "  name: warmup_stable_decay",
        f"  t_warmup: {warmup}ba",
        "  t_decay: 0.1dur",
    ]
    return "\n".join(lines)
