"""The verdict: what patches changed at equal data and at equal compute, where the comparison is fair.

A loss is compared between runs that came to their end with their learning rate decayed. A baseline read in
the middle of its schedule looks worse than it is: in an independent replication of token superposition
an apparent speed-up of 1.9 was about 1.2 between runs that had both ended their decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from patch_algorithm.reporting.amounts import compute, nats, tokens
from patch_algorithm.reporting.groups import Group
from patch_algorithm.reporting.places import same_place
from patch_algorithm.reporting.runs import AT_MINIMUM, Run

__all__ = ["SpeedUp", "Verdict", "choose_baselines", "compute_axis", "judge", "speed_up", "subjects_of"]

_SAME = {"data": 0.01, "compute": 0.02}
"""How far two totals may differ and still count as equal."""
_SAME_RATE = 0.02


@dataclass(frozen=True)
class Verdict:
    """What is said of a group against a baseline, on one basis.

    Attributes:
        subject: The group.
        basis: ``data`` or ``compute``: what is equal.
        text: The verdict in a sentence or more.
        stated: Whether there is a fair comparison.
        baseline: The group compared with; ``None`` if there is none.
        loss: Median final eval loss of the subject, nats per token.
        baseline_loss: That of the baseline.
        difference: Subject less baseline, nats per token; negative where the subject is better.
        apart: Whether the ranges of the seeds do not overlap; ``None`` where a group has one run only.
    """

    subject: str
    basis: str
    text: str
    stated: bool = False
    baseline: str | None = None
    loss: float | None = None
    baseline_loss: float | None = None
    difference: float | None = None
    apart: bool | None = None


@dataclass(frozen=True)
class SpeedUp:
    """How much more compute token-only training takes to reach the subject's final loss.

    Attributes:
        subject: The group.
        text: In a sentence.
        low: The least it can be, by the runs that are there; ``None`` if they set no lower bound.
        high: The most; equal to ``low`` where it was interpolated.
    """

    subject: str
    text: str
    low: float | None = None
    high: float | None = None


def compute_axis(groups: Sequence[Group]) -> str:
    """The axis of compute: FLOPs, or positions if a run has none recorded."""
    return "flops" if all(group.total("flops") is not None for group in groups) else "positions"


def choose_baselines(groups: Sequence[Group], paths: Sequence[str]) -> list[Group]:
    """The groups to compare with: those of the runs that were named, else the token-only ones.

    Raises:
        ValueError: If a path is none of the runs'.
    """
    chosen: set[str] = set()
    for path in paths:
        place = same_place(path)
        found = {g.name for g in groups for r in g.runs if r.name == path or same_place(r.path) == place}
        if not found:
            raise ValueError(f"--baseline {path} is not one of the runs. List it among them, too.")
        chosen |= found
    return [group for group in groups if (group.name in chosen if paths else not group.has_patches)]


def subjects_of(groups: Sequence[Group], baselines: Sequence[Group]) -> list[Group]:
    """The groups that are judged: those with patches, or, if there are none, all but the baselines."""
    others = [group for group in groups if group not in baselines]
    return [group for group in others if group.has_patches] or others


def judge(subject: Group, baselines: Sequence[Group], basis: str, compute_on: str) -> Verdict:
    """Compares a group with the baseline that has taken as much.

    Args:
        subject: The group.
        baselines: What to compare with.
        basis: ``data`` or ``compute``: what has to be equal.
        compute_on: The axis of compute.
    """
    axis = "raw_tokens" if basis == "data" else compute_on
    own = subject.total(axis)
    amount = tokens(own or 0) + " raw tokens" if basis == "data" else compute(own or 0, axis)
    head = f"equal {basis} ({amount}): "
    if early := [run for run in subject.runs if run.cannot_be_judged()]:
        reason = early[0].cannot_be_judged()
        text = f"not stated, because {early[0].name} cannot be judged: {reason}. {_first(early)}"
        return Verdict(subject.name, basis, head + text)
    near = [b for b in baselines if own and math.isclose(b.total(axis) or 0, own, rel_tol=_SAME[basis])]
    if not near:
        return Verdict(subject.name, basis, head + _no_twin(subject, baselines, basis, axis))
    baseline = min(near, key=lambda b: (bool(_unfair(subject, b)), abs((b.total(axis) or 0) - (own or 0))))
    reason = _unfair(subject, baseline)
    if reason or subject.final_loss is None or baseline.final_loss is None:
        text = f"not stated, because {reason}. {_advice(subject, baseline, basis, axis)}"
        return Verdict(subject.name, basis, head + text, baseline=baseline.name)
    difference = subject.final_loss - baseline.final_loss
    apart = _apart(subject, baseline)
    text = (
        f"{subject.name} ends at {subject.final_loss:.3f}, {baseline.name} at {baseline.final_loss:.3f}: "
        f"{nats(difference)}, {_better(difference, apart)}. {_of_seeds(subject, baseline, apart)}"
        f"{_of_rates(subject, baseline)}"
    )
    return Verdict(
        subject.name,
        basis,
        head + text,
        True,
        baseline.name,
        subject.final_loss,
        baseline.final_loss,
        difference,
        apart,
    )


def speed_up(subject: Group, baselines: Sequence[Group], axis: str) -> SpeedUp:
    """How many times the subject's compute token-only training takes to reach the same final loss.

    Only runs whose schedules ended count; between two of them the compute is interpolated, on a
    logarithmic scale.
    """
    ladder = sorted(
        (total, b.final_loss, b.name)
        for b in baselines
        if (total := b.total(axis)) and b.final_loss is not None and not _unfair(subject, b)
    )
    own, loss = subject.total(axis), subject.final_loss
    if not ladder or not own or loss is None:
        return SpeedUp(subject.name, "speed-up: not stated without a completed twin whose schedule ended.")
    doubt = _doubt(subject, baselines, ladder)
    for (less, above, first), (more, below, second) in pairwise(ladder):
        if above >= loss >= below and above > below:
            part = (above - loss) / (above - below)
            needs = math.exp(math.log(less) + part * (math.log(more) - math.log(less)))
            text = f"interpolated between {first} and {second}"
            return SpeedUp(subject.name, _says(needs / own, "", text) + doubt, needs / own, needs / own)
    most, best, name = min(ladder, key=lambda entry: entry[1])
    if loss <= best:
        return SpeedUp(
            subject.name, _says(most / own, "at least ", f"{name} ends no lower") + doubt, low=most / own
        )
    least, _, name = ladder[0]
    return SpeedUp(subject.name, _says(least / own, "below ", f"{name} ends lower") + doubt, high=least / own)


def _doubt(subject: Group, baselines: Sequence[Group], ladder: Sequence[tuple[float, float, str]]) -> str:
    """Which differences the number rests on that are none beyond the seeds' spread."""
    names = {name for _, _, name in ladder}
    close = [b.name for b in baselines if b.name in names and _apart(subject, b) is False]
    if close:
        return f" It is not certain: the final losses of {subject.name} and {' and '.join(close)} overlap."
    single = subject.spread is None or any(b.spread is None for b in baselines if b.name in names)
    return " One seed: no spread known." if single else ""


def _says(factor: float, bound: str, why: str) -> str:
    text = f"token-only training reaches the same loss with {bound}{factor:.2f} times the compute ({why})"
    if factor < 1 and bound != "at least ":
        return f"speed-up: none; {text}."
    return f"speed-up in compute: {bound}{factor:.2f}; {text}."


def _apart(one: Group, other: Group) -> bool | None:
    """Whether the final losses of two groups do not overlap."""
    a, b = one.final_losses, other.final_losses
    if min(len(a), len(b)) < 2:
        return None
    return max(a) < min(b) or max(b) < min(a)


def _better(difference: float, apart: bool | None) -> str:
    if apart is False:
        return "no difference beyond the seeds' spread"
    return "better" if difference < 0 else "worse" if difference > 0 else "the same"


def _of_seeds(one: Group, other: Group, apart: bool | None) -> str:
    if apart is None:
        single = [group for group in (one, other) if group.spread is None]
        if len(single) == 2:
            return "One seed: no spread known."
        known = one if single[0] is other else other
        return f"One seed of {single[0].name}: no spread known; {known.name} spreads {known.spread:.3f} nats."
    n, m = len(one.final_losses), len(other.final_losses)
    text = (
        f"Medians: {one.seeds} that spread over {one.spread:.3f} nats, and {other.seeds} that spread over "
        f"{other.spread:.3f}. "
    )
    if apart:
        odds = math.comb(n + m, n) / 2
        return (
            text + f"The ranges do not overlap; without a real difference, that happens one time in {odds:g}."
        )
    return text + "The ranges overlap."


def _of_rates(one: Group, other: Group) -> str:
    lefts = [run.rate_left for run in (*one.runs, *other.runs)]
    if None in lefts:
        return " The learning rate is not recorded in every file, so its decay was not checked."
    if all(run.unfinished() for run in one.runs):
        return f" No run's rate decayed (all end at {lefts[0]:.0%} of the peak)."
    return ""


def _unfair(one: Group, other: Group) -> str | None:
    """Why the final losses of two groups cannot be compared; ``None`` if they can."""
    runs = (*one.runs, *other.runs)
    reasons = [(run, reason) for run in runs if (reason := run.unfinished()) is not None]
    if not reasons:
        return None
    lefts = [run.rate_left for run in runs]
    known = [left for left in lefts if left is not None]
    constant = all(run.sound and run.completed and run.final_loss is not None for run in runs)
    # Schedules that never decay may be compared with each other.
    if constant and len(known) == len(lefts) and max(known) - min(known) <= _SAME_RATE:
        return None
    run, reason = reasons[0]
    more = f" (and {len(reasons) - 1} more of these runs)" if len(reasons) > 1 else ""
    return f"{run.name} cannot be judged: {reason}{more}"


def _no_twin(subject: Group, baselines: Sequence[Group], basis: str, axis: str) -> str:
    own = subject.total(axis)
    if not baselines:
        return (
            f"not stated, because there is no token-only run to compare with. {_twin(subject, basis, axis)}"
        )
    what = "raw tokens" if basis == "data" else "compute"
    longer = [(b.total(axis) or 0, b) for b in baselines if own and (b.total(axis) or 0) > own]
    text = f"not stated, because no run of {_names(baselines)} ends at as much {what}. "
    if basis == "data":
        text = text.replace("as much", "as many")
    if longer and own:
        baseline = min(longer, key=lambda pair: pair[0])[1]
        left = _rate_at(baseline, own, axis)
        if left is not None and left > AT_MINIMUM:
            text += (
                f"{baseline.name} passes that point at {left:.0%} of its peak rate: its loss there is "
                "not that of a run that ends there. "
            )
    return text + _twin(subject, basis, axis)


def _advice(subject: Group, baseline: Group, basis: str, axis: str) -> str:
    """What to run instead, by whose fault it is."""
    if any(run.unfinished() for run in baseline.runs):
        return _twin(subject, basis, axis)
    return _first([run for run in subject.runs if run.unfinished()])


def _first(runs: Sequence[Run]) -> str:
    if all(run.completed and run.diverged for run in runs):
        return "Repeat it with settings under which it does not diverge, such as a lower learning rate."
    if all(run.completed and run.final_loss is None for run in runs):
        return "Repeat it with an eval_loader and eval_interval: 1dur, which evaluates at the end."
    return f"Let {', '.join(run.name for run in runs)} reach the end of the schedule first."


def _twin(subject: Group, basis: str, axis: str) -> str:
    own, per_token = subject.total(axis), _token_cost(subject, axis)
    end = subject.runs[0].end
    amount = own if basis == "data" else own / per_token if own and per_token else None
    size = ""
    if amount:
        steps = amount / max(end.raw_tokens, 1) * end.step
        size = f" of {tokens(amount)} raw tokens (about {steps:,.0f} steps)"
    return (
        f"Run a token-only twin{size} whose schedule ends there: "
        "`patch-level plan RUN.yaml --twin TWIN.yaml` writes it."
    )


def _token_cost(group: Group, axis: str) -> float | None:
    """The compute of a raw token at token level."""
    if axis == "positions":
        return 1.0
    for span in group.spans:
        taken = span.end.raw_tokens - span.begin.raw_tokens
        if span.k == 1 and taken and span.end.flops is not None and span.begin.flops is not None:
            return (span.end.flops - span.begin.flops) / taken
    return None


def _rate_at(group: Group, x: float, axis: str) -> float | None:
    rates = group.runs[0].rates
    passed = [rate for moment, rate in rates if (getattr(moment, axis) or 0) <= x]
    peak = max((rate for _, rate in rates), default=0.0)
    return passed[-1] / peak if passed and peak else None


def _names(groups: Sequence[Group]) -> str:
    return " or ".join(group.name for group in groups)
