"""Whether a run is worth it, in plain words, with the evidence and its limits. It may say no."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from patch_algorithm.checks.stage_choice import BREAK_EVEN, loss_difference
from patch_algorithm.planning.costs import RunCost
from patch_algorithm.planning.plan_numbers import number
from patch_algorithm.planning.verdict_evidence import (
    EQUAL_COMPUTE,
    EQUAL_DATA,
    EqualComputePoint,
    StudyCell,
    study_cells,
)

__all__ = ["GAIN_FROM", "NO_GAIN_BELOW", "RESIDUAL", "Answer", "Verdict", "judge", "small_models"]

RESIDUAL = 0.0025
"""Standard deviation of the paper's seven points around the fit, in nats."""

NO_GAIN_BELOW = 5e6
"""Parameters below which all that is known of equal compute is our own study."""
GAIN_FROM = 1e8
"""Parameters from which on the public runs have."""
_FITTED = (min(p.tokens_per_parameter for p in EQUAL_DATA), max(p.tokens_per_parameter for p in EQUAL_DATA))
_MARGIN = 1.1  # a run just beside a point of the fit is inside its range
_MOST_IN_PATCHES = 0.8
_LARGEST_K = 8
_MOSTLY_USED = 0.6


class Answer(str, Enum):
    """Whether patches win."""

    yes = "yes"
    no = "no"
    unknown = "not known"


@dataclass(frozen=True)
class Verdict:
    """What to expect of a run.

    Attributes:
        headline: The answer in one sentence or two.
        equal_data: Whether the loss is expected to be below that of token-level training on the same data.
        equal_compute: The same for token-level training of the same compute, on less data.
        tokens_per_parameter: Raw tokens of the run per parameter; ``None`` where the model is not known.
        loss_difference: Patch minus token on equal data by the fit, in nats; ``None`` where there is none.
        lines: The evidence in words.
        points: The public runs of a size like this one, at equal compute.
        study: The cells of our own study that are nearest in size.
        caveats: What the evidence does not cover.
    """

    headline: str
    equal_data: Answer
    equal_compute: Answer
    tokens_per_parameter: float | None
    loss_difference: float | None
    lines: tuple[str, ...] = ()
    points: tuple[EqualComputePoint, ...] = ()
    study: tuple[StudyCell, ...] = ()
    caveats: tuple[str, ...] = ()


def judge(run: RunCost, parameters: int | None) -> Verdict:
    """Says what is known of runs like this one.

    Args:
        run: The run.
        parameters: Of its model; ``None`` where it is not known.
    """
    ks = tuple(stage.k for stage in run.stages if stage.in_patches)
    if not ks:
        return _no_patches(run, parameters)
    if parameters is None:
        lines = ("The size of the model is not known, and everything that is known depends on it.",)
        return Verdict("Not known.", Answer.unknown, Answer.unknown, None, None, lines)
    per_parameter = run.raw_tokens / parameters
    difference = loss_difference(per_parameter)
    data = Answer.yes if difference < -RESIDUAL else Answer.no
    if abs(difference) <= RESIDUAL:
        data = Answer.unknown
    compute = _compute_answer(run, parameters, max(ks))
    return Verdict(
        headline=_headline(run, data, compute),
        equal_data=data,
        equal_compute=compute,
        tokens_per_parameter=per_parameter,
        loss_difference=difference,
        lines=(_equal_data(per_parameter, difference), _equal_compute(run, compute)),
        points=_points(parameters, max(ks)),
        study=_study(parameters),
        caveats=tuple(_caveats(run, ks, parameters)),
    )


def _no_patches(run: RunCost, parameters: int | None) -> Verdict:
    per_parameter = None if parameters is None else run.raw_tokens / parameters
    text = "This run trains at token level throughout: there is nothing to compare. Try `--suggest`."
    return Verdict(text, Answer.unknown, Answer.unknown, per_parameter, None)


def _compute_answer(run: RunCost, parameters: int, k: int) -> Answer:
    if run.stages[-1].in_patches or run.patch_share_of_compute > _MOST_IN_PATCHES:
        return Answer.no
    if parameters < NO_GAIN_BELOW:
        twin = run.raw_tokens * run.positions_share / parameters
        level = [cell.tokens_per_parameter for cell in _at_equal_compute() if cell.low <= 0]
        return Answer.no if twin < min(level, default=math.inf) else Answer.unknown
    return Answer.yes if parameters >= GAIN_FROM and k <= _LARGEST_K else Answer.unknown


def _headline(run: RunCost, data: Answer, compute: Answer) -> str:
    saved = f"{100 * (1 - run.positions_share):.0f} % less compute"
    if run.stages[-1].in_patches:
        return "No. The run ends before its switch and leaves a patch model, which cannot generate text."
    if compute is Answer.no:
        if data is Answer.no:
            return (
                "No. Expect a higher loss than token-only training, on the same data and at the same compute."
            )
        return "No result for a run like this shows a gain at the same compute. Do not count on one."
    if compute is Answer.unknown:
        return (
            f"Not known. On the same data it takes {saved}; whether it beats token-only training of the same "
            "compute has not been shown for a run like this."
        )
    if data is Answer.yes:
        return f"Yes. Expect a lower loss than token-only training on the same data, with {saved}."
    if data is Answer.unknown:
        return f"Yes. Expect about the loss of token-only training on the same data, with {saved}."
    return (
        "Yes if compute is what limits you: published runs beat token-only training of the same compute. No "
        f"if data is: expect a higher loss than token-only training on the same data, with {saved}."
    )


def _equal_data(per_parameter: float, difference: float) -> str:
    low, high = _FITTED
    expected = f"about {difference:+.3f} nats per token"
    if not low / _MARGIN <= per_parameter <= high * _MARGIN:
        direction = "higher" if difference > 0 else "lower"
        expected = f"a {direction} loss, of the order of {difference:+.2f} nats per token"
    text = (
        f"Equal data: {number(per_parameter)} raw tokens per parameter; expect {expected} against token-only "
        "training. That is a least-squares fit, 0.1368 - 0.02354 ln(tokens per parameter), of the seven "
        f"points of arXiv 2407.12665 (k=4, ratio 2/3, {low:.0f} to {high:.0f} tokens per parameter, 370M to "
        f"2.7B parameters, one run each; residual {RESIDUAL} nats). It breaks even at {BREAK_EVEN}."
    )
    if per_parameter < low / _MARGIN:
        text += (
            " This run is below its range, so take the figure as an order of magnitude only: token "
            "superposition's 3B run at 35 tokens per parameter (k=6) ended +0.036 above, where the fit says "
            "+0.053."
        )
    elif per_parameter > high * _MARGIN:
        text += " This run is above its range, so take the figure as an order of magnitude only."
    return text


def _equal_compute(run: RunCost, answer: Answer) -> str:
    meaning = {
        Answer.yes: (
            "all public pairs of at least 100M parameters, with k of 4 or 6 and 30 % of the compute in "
            "patches, won where the optimizer was carried over the switch. There is a second-hand report, "
            "which cannot be checked, that nanochat's baseline was not beaten"
        ),
        Answer.no: f"below {number(NO_GAIN_BELOW)} parameters all that we know of is {small_models()}",
        Answer.unknown: "nothing is settled for this size and patch size",
    }[answer]
    if run.stages[-1].in_patches or run.patch_share_of_compute > _MOST_IN_PATCHES:
        meaning = (
            "in token superposition's grids patches lost where they took 0.9 of the compute with k of 4 and "
            "more (270M parameters, 20,000 steps)"
        )
    share = f"{100 * run.positions_share:.0f} %"
    return f"Equal compute (token-only training on {share} of these tokens): {meaning}."


def small_models() -> str:
    """What our own study found at equal compute, in words."""
    cells = _at_equal_compute()
    ends = ", ".join(
        f"{abs(cell.bits_per_byte):.3f} {'above' if cell.bits_per_byte > 0 else 'below'} at "
        f"{cell.tokens_per_parameter:g} tokens per parameter"
        for cell in cells
    )
    sizes = " and ".join(dict.fromkeys(number(cell.parameters) for cell in cells))
    return f"our own study of {sizes} parameters, where patch runs ended, in bits per byte, {ends}"


def _at_equal_compute() -> list[StudyCell]:
    return [cell for cell in study_cells() if cell.hold == "positions"]


def _points(parameters: int, k: int) -> tuple[EqualComputePoint, ...]:
    like = [p for p in EQUAL_COMPUTE if (p.parameters >= GAIN_FROM) == (parameters >= GAIN_FROM)]
    # Of one model's runs, those with the patch size that is nearest.
    groups: dict[tuple[float, float | None], list[EqualComputePoint]] = {}
    for point in like:
        groups.setdefault((point.parameters, point.tokens_per_parameter), []).append(point)
    return tuple(min(points, key=lambda point: abs(point.k - k)) for points in groups.values())


def _study(parameters: int) -> tuple[StudyCell, ...]:
    cells = study_cells()
    away = {cell: abs(math.log(cell.parameters / parameters)) for cell in cells}
    return tuple(cell for cell in cells if away[cell] <= min(away.values()) + 1e-9)


def _caveats(run: RunCost, ks: tuple[int, ...], parameters: int) -> Iterable[str]:
    ratio = run.patch_share_of_tokens
    if ks != (4,) or not 0.6 <= ratio <= 0.72:
        sizes = ", ".join(map(str, ks))
        yield (
            f"The fit is for k=4 and ratio 2/3; this run has k={sizes} and ratio {ratio:.2f}, for which "
            "there is none. On fixed data the paper found the best ratio near 1/4 and a rapid loss above "
            "3/4."
        )
    if max(ks) > _LARGEST_K:
        yield f"k={max(ks)}: above 8 both papers found a higher loss in dense models."
    if parameters < min(point.parameters for point in EQUAL_DATA) / 2:
        yield "The fit is for models of 370M to 2.7B parameters; it has not been checked at this size."
    used = None if run.flops is None else run.flops / run.positions / 6
    if used is not None and used < _MOSTLY_USED * parameters:
        yield (
            f"A position uses about {number(used)} of the {number(parameters)} parameters, as in a mixture "
            "of experts. Tokens are divided by all of them here, and all figures but one are of dense "
            "models: token superposition's 10B-A1B (k=16) ended 0.016 nats below its baseline for 0.39 of "
            "the GPU-hours."
        )
    yield (
        "The figures hold for runs whose learning rate stays up across the switch and ends its own decay "
        "(warm-up, plateau, decay, optimizer carried over), or restarts in each stage (optimizer reset). "
        "`patch-level doctor` checks the schedule."
    )
    yield (
        "A comparison is fair only against a token-only run that ends its own decay, as `--twin` writes: in "
        "the replication an apparent speed-up of 1.9 was about 1.2 against such a run."
    )
