"""Whether a run is worth it, in plain words, with the evidence and its limits. It may say no."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from patch_algorithm.checks.stage_choice import BREAK_EVEN, loss_difference
from patch_algorithm.planning.costs import RunCost
from patch_algorithm.planning.verdict_evidence import (
    EQUAL_COMPUTE,
    EQUAL_DATA,
    EqualComputePoint,
    StudyCell,
    study_cells,
)

__all__ = ["RESIDUAL", "Answer", "Verdict", "judge"]

RESIDUAL = 0.0025
"""Standard deviation of the paper's seven points around the fit, in nats."""

_NO_GAIN_BELOW = 5e6
_GAIN_FROM = 1e8
_FITTED = (min(p.tokens_per_parameter for p in EQUAL_DATA), max(p.tokens_per_parameter for p in EQUAL_DATA))
_MOST_IN_PATCHES = 0.8
_LARGEST_K = 8


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
        lines: The evidence, a sentence or more each.
        caveats: What the evidence does not cover.
    """

    headline: str
    equal_data: Answer
    equal_compute: Answer
    tokens_per_parameter: float | None
    loss_difference: float | None
    lines: tuple[str, ...]
    caveats: tuple[str, ...]


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
        return Verdict("Not known.", Answer.unknown, Answer.unknown, None, None, lines, ())
    per_parameter = run.raw_tokens / parameters
    difference = loss_difference(per_parameter)
    data = Answer.yes if difference < -RESIDUAL else Answer.no
    if abs(difference) <= RESIDUAL:
        data = Answer.unknown
    compute = _compute_answer(run, parameters, max(ks))
    lines = (_equal_data(run, per_parameter, difference), *_equal_compute(run, parameters, compute))
    caveats = tuple(_caveats(run, ks, parameters, per_parameter))
    headline = _headline(run, data, compute)
    return Verdict(headline, data, compute, per_parameter, difference, lines, caveats)


def _no_patches(run: RunCost, parameters: int | None) -> Verdict:
    per_parameter = None if parameters is None else run.raw_tokens / parameters
    text = "This run trains at token level throughout: there is nothing to compare. Try `--suggest`."
    return Verdict(text, Answer.unknown, Answer.unknown, per_parameter, None, (), ())


def _compute_answer(run: RunCost, parameters: int, k: int) -> Answer:
    if run.stages[-1].in_patches or run.patch_share_of_compute > _MOST_IN_PATCHES:
        return Answer.no
    if parameters < _NO_GAIN_BELOW:
        return Answer.no
    return Answer.yes if parameters >= _GAIN_FROM and k <= _LARGEST_K else Answer.unknown


def _headline(run: RunCost, data: Answer, compute: Answer) -> str:
    saved = f"{100 * (1 - run.positions_share):.0f} % less compute"
    if run.stages[-1].in_patches:
        return "No. The run ends before its switch and leaves a patch model, which cannot generate."
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
        "Yes if compute is what limits you: published runs beat token-only training of the same compute. No if "
        f"data is: expect a higher loss than token-only training on the same data, with {saved}."
    )


def _equal_data(run: RunCost, per_parameter: float, difference: float) -> str:
    low, high = _FITTED
    expected = f"about {difference:+.3f} nats a token"
    if not low <= per_parameter <= high:
        direction = "higher" if difference > 0 else "lower"
        expected = f"a {direction} loss, in the order of {difference:+.2f} nats a token"
    text = (
        f"Equal data: {_number(per_parameter)} raw tokens per parameter; expect {expected} against token-only "
        f"training. That is a least-squares fit, 0.1368 - 0.02354 ln(tokens per parameter), of the seven points "
        f"of arXiv 2407.12665 (k=4, ratio 2/3, {low:.0f} to {high:.0f} tokens per parameter, 370M to 2.7B "
        f"parameters, one run each; residual {RESIDUAL} nats). It breaks even at {BREAK_EVEN}."
    )
    if per_parameter < low:
        text += (
            f" This run is below its range, so take the figure as an order of magnitude only: token "
            "superposition's 3B run at 35 tokens per parameter (k=6) ended +0.036 above, where the fit says +0.053."
        )
    elif per_parameter > high:
        text += " This run is above its range, so take the figure as an order of magnitude only."
    return text


def _equal_compute(run: RunCost, parameters: int, answer: Answer) -> Iterable[str]:
    near = _nearest(parameters)
    points = "; ".join(_point(point) for point in near)
    meaning = {
        Answer.yes: "every public run of at least 100M parameters with k of 4 to 8 won",
        Answer.no: f"no public run below {_number(_NO_GAIN_BELOW)} parameters won",
        Answer.unknown: "the public runs of this size disagree, or there is none",
    }[answer]
    if run.patch_share_of_compute > _MOST_IN_PATCHES or run.stages[-1].in_patches:
        meaning = (
            "in token superposition's grids patches lost where they took 0.9 of the compute with k of 4 and "
            "more (270M parameters, 20,000 steps)"
        )
    yield (
        f"Equal compute (token-only on {100 * run.positions_share:.0f} % of these tokens): {meaning}. Patch minus "
        f"token, one run each: {points}."
    )
    cells = [cell for cell in study_cells() if cell.hold == "positions"]
    if cells:
        nearest = min(abs(math.log(cell.parameters / parameters)) for cell in cells)
        shown = [c for c in cells if abs(math.log(c.parameters / parameters)) <= nearest + 1e-9]
        yield f"Our own study, equal compute: {'; '.join(_cell(cell) for cell in shown)}."


def _nearest(parameters: int) -> list[EqualComputePoint]:
    if parameters >= _GAIN_FROM:
        return [point for point in EQUAL_COMPUTE if point.parameters >= _GAIN_FROM]
    return [point for point in EQUAL_COMPUTE if point.parameters < _GAIN_FROM]


def _point(point: EqualComputePoint) -> str:
    at = "" if point.tokens_per_parameter is None else f" at {point.tokens_per_parameter:g} tokens per parameter"
    note = f" ({point.note})" if point.note else ""
    return f"{point.nats:+.3f} nats, {_number(point.parameters)}{at}, k={point.k}, {point.source}{note}"


def _cell(cell: StudyCell) -> str:
    k, end = cell.stages[0]
    interval = f"{cell.low:+.3f} to {cell.high:+.3f}"
    seeds = f"{cell.seeds} seeds" if cell.seeds > 1 else "1 seed: the interval is of documents alone"
    return (
        f"{cell.bits_per_byte:+.3f} bits a byte ({interval}, {seeds}), {_number(cell.parameters)} parameters at "
        f"{cell.tokens_per_parameter:g} tokens per parameter, k={k} for {100 * end:g} % of the steps"
    )


def _caveats(run: RunCost, ks: tuple[int, ...], parameters: int, per_parameter: float) -> Iterable[str]:
    ratio = run.patch_share_of_tokens
    if ks != (4,) or not 0.6 <= ratio <= 0.72:
        sizes = ", ".join(map(str, ks))
        yield (
            f"The fit is of k=4 and ratio 2/3; this run has k={sizes} and ratio {ratio:.2f}, for which there is "
            "none. On fixed data the paper found the best ratio near 1/4 and a rapid loss above 3/4."
        )
    if max(ks) > _LARGEST_K:
        yield f"k={max(ks)}: above 8 both papers found a higher loss in dense models."
    if parameters < min(point.parameters for point in EQUAL_DATA) / 2:
        yield "The fit is of models of 370M to 2.7B parameters; it has not been checked at this size."
    yield (
        "The figures hold for runs whose learning rate stays up over the switch and ends its own decay "
        "(warm-up, plateau, decay, optimizer carried over), or restarts in each stage (optimizer reset). "
        "`patch-level doctor` checks the schedule."
    )
    yield (
        "A comparison is fair only against a token-only run that ends its own decay, as `--twin` writes: the "
        "replication found that 85 % of an apparent 1.9-fold speed-up was the baseline's undecayed rate."
    )


def _number(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
