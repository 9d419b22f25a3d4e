"""A report: runs in, verdict and numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from patch_algorithm.common.version import __version__
from patch_algorithm.reporting.comparison import (
    SpeedUp,
    Verdict,
    choose_baselines,
    compute_axis,
    judge,
    speed_up,
    subjects_of,
)
from patch_algorithm.reporting.evaluations import (
    Evaluation,
    evaluations_of,
    evaluations_text,
    is_result_file,
)
from patch_algorithm.reporting.groups import Group, Point, group_runs
from patch_algorithm.reporting.places import named, same_place
from patch_algorithm.reporting.recovery import Recovery, recovery_of, recovery_words
from patch_algorithm.reporting.runs import Run, read_run

__all__ = ["Report", "make_report"]


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        groups: The runs, those of the same settings together.
        compute: The axis of compute: ``flops``, or ``positions`` if a run has no FLOPs recorded.
        verdicts: For each group that is judged, at equal data and at equal compute.
        speed_ups: For each group that is judged.
        recoveries: For each group that has switched from patches to tokens.
        notes: What holds for all runs together.
        evaluations: What `patch-level eval` has measured.
    """

    groups: list[Group]
    compute: str
    verdicts: list[Verdict]
    speed_ups: list[SpeedUp]
    recoveries: list[Recovery]
    notes: list[str]
    evaluations: list[Evaluation]

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for group in self.groups for run in group.runs]

    def to_text(self) -> str:
        """The report as lines for a terminal."""
        lines = []
        for number, up in enumerate(self.speed_ups):
            lines += [up.subject, *(f"  {v.text}" for v in self.verdicts[2 * number : 2 * number + 2])]
            lines.append(f"  {up.text}")
        for recovery in self.recoveries:
            lines.append(f"{recovery.subject}: {recovery_words(recovery)}")
        lines += [f"{run.name}: {finding}." for run in self.runs for finding in run.findings]
        return "\n".join([*lines, *self.notes, *evaluations_text(self.evaluations)])

    def to_json(self) -> dict[str, Any]:
        """All numbers in primitives; losses are in nats per token, times in seconds."""
        return {
            "version": __version__,
            "compute_axis": self.compute,
            "groups": [_group(group) for group in self.groups],
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "speed_ups": [asdict(up) for up in self.speed_ups],
            "recoveries": [
                asdict(r) | {name: _point(getattr(r, name)) for name in ("before", "after", "level")}
                for r in self.recoveries
            ],
            "notes": self.notes,
            "evaluations": [one.to_json() for one in self.evaluations],
        }


def make_report(runs: Sequence[str], baselines: Sequence[str] = (), metric: str | None = None) -> Report:
    """Reads runs and compares them.

    Args:
        runs: Histories or folders that hold one; see :func:`.read_run`. Files ``*.json`` among them are
            results of `patch-level eval`.
        baselines: Those of them to compare with; by default the runs without a patch stage.
        metric: The eval metric, in nats; by default the cross-entropy.

    Raises:
        ValueError: For input that cannot be used, naming the file and, if there is one, the line.
    """
    results = [text for text in runs if is_result_file(text)]
    runs = [text for text in runs if not is_result_file(text)]
    if not runs:
        raise ValueError("give at least one run; results of `patch-level eval` can only be given with runs.")
    _refuse_twice(runs)
    read = [read_run(text, metric) for text in runs]
    if len({run.metric for run in read}) > 1:
        names = ", ".join(sorted({run.metric for run in read}))
        raise ValueError(f"The runs have different eval losses ({names}). Choose one with --metric.")
    names = [run.name for run in read]
    for run in read:
        if names.count(run.name) > 1:
            run.name = run.path
    groups = group_runs(read)
    compared = choose_baselines(groups, [named(text)[1] for text in baselines])
    compute = compute_axis(groups)
    subjects = subjects_of(groups, compared) if len(groups) > 1 or groups[0].has_patches else []
    return Report(
        groups=groups,
        compute=compute,
        verdicts=[judge(g, compared, basis, compute) for g in subjects for basis in ("data", "compute")],
        speed_ups=[speed_up(g, compared, compute) for g in subjects],
        recoveries=[r for g in groups if (r := recovery_of(g, [b for b in compared if b is not g], compute))],
        notes=_notes(read, groups, compute, bool(subjects)),
        evaluations=evaluations_of(read, results),
    )


def _refuse_twice(runs: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for text in runs:
        place = named(text)[1]
        real = same_place(place)
        if real in seen:
            raise ValueError(f"{place} and {seen[real]} are the same run. Give each run once.")
        seen[real] = place


def _notes(runs: Sequence[Run], groups: Sequence[Group], compute: str, judged: bool) -> list[str]:
    notes = []
    if not judged:
        notes.append("Nothing is compared: no run has a patch stage. Add a patch run, or name a --baseline.")
    if compute != "flops":
        notes.append("Compute is counted in positions, because not every run has FLOPs recorded.")
    if len({run.settings["parameters"] for run in runs if "parameters" in run.settings}) > 1:
        notes.append("The models differ in size.")
    for group in groups:
        seeds = [run.seed for run in group.runs if run.seed is not None]
        for seed in sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            names = " and ".join(run.name for run in group.runs if run.seed == seed)
            notes.append(f"{names} have the same seed ({seed}): their difference is not a spread over seeds.")
    if len(runs) > 1:
        notes.append("This assumes that all runs were evaluated on the same rows, with the same tokenizer.")
    return notes


def _group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "patches": group.has_patches,
        "stages": [
            {"k": s.k, "steps": s.steps, "until_step": s.end.step, "label": s.label} for s in group.spans
        ],
        "final_loss": group.final_loss,
        "spread": group.spread,
        "evals": [_point(point) for point in group.evals],
        "runs": [_run(run) for run in group.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": run.path,
        "seed": run.seed,
        "state": run.state,
        "completed": run.completed,
        "rate_left": run.rate_left,
        "why_not_compared": run.unfinished(),
        "final_loss": run.final_loss,
        "end": asdict(run.end),
        "findings": run.findings,
    }


def _point(point: Point | None) -> dict[str, Any] | None:
    return (
        None
        if point is None
        else {**asdict(point.at), "loss": point.loss, "low": point.low, "high": point.high}
    )
