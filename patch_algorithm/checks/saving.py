"""Checks of when a run evaluates and saves, and where it saves to."""

from __future__ import annotations

from dataclasses import dataclass

from patch_algorithm.checks.finding import Finding, finding

__all__ = ["FolderFacts", "IntervalFacts", "check_folder", "check_intervals"]


@dataclass(frozen=True)
class IntervalFacts:
    """When a run evaluates and saves, in steps.

    Attributes:
        switch: The first step of the token stage; ``None`` without one, or if not known.
        evaluates: Whether there is anything to evaluate, and it is not switched off.
        eval_every: Steps between evaluations; ``None`` if not known.
        eval_at_switch: Whether the algorithm evaluates at the switch.
        saves: Whether checkpoints are saved.
        save_every: Steps between checkpoints; ``None`` if not known.
        save_at_switch: Whether the algorithm saves at the switch.
    """

    switch: int | None
    evaluates: bool
    eval_every: int | None
    eval_at_switch: bool
    saves: bool
    save_every: int | None
    save_at_switch: bool


def check_intervals(facts: IntervalFacts) -> list[Finding]:
    """Checks that the switch is evaluated and saved."""
    found: list[Finding] = []
    if not facts.evaluates:
        found.append(
            finding(
                "no-evaluation",
                "Nothing is evaluated: there is no eval_loader, or eval_interval is 0.",
                "Losses of the patch stage and of the token stage are not comparable, so only "
                "evaluation, which is always at token level, shows progress over the whole run.",
                "Add an eval_loader of held-out rows and an eval_interval.",
            )
        )
    if not facts.switch:
        return found
    if facts.evaluates and not facts.eval_at_switch and _misses(facts.eval_every, facts.switch):
        found.append(
            finding(
                "eval-misses-switch",
                f"algorithms.patch_level.eval_at_switch is false, and eval_interval ({facts.eval_every:,} "
                f"steps) misses the switch at step {facts.switch:,}.",
                "Only an evaluation there shows what the patch stage has learned.",
                "Remove eval_at_switch, or choose an interval that divides the switch.",
            )
        )
    if facts.saves and not facts.save_at_switch and _misses(facts.save_every, facts.switch):
        found.append(
            finding(
                "save-misses-switch",
                "algorithms.patch_level.checkpoint_at_switch is false, and save_interval "
                f"({facts.save_every:,} steps) misses the switch at step {facts.switch:,}.",
                "The patch stage's result is the start of any other token stage that you may want to try.",
                "Remove checkpoint_at_switch, or choose an interval that divides the switch.",
            )
        )
    return found


def _misses(every: int | None, switch: int) -> bool:
    return every is not None and switch % every != 0


@dataclass(frozen=True)
class FolderFacts:
    """The folder that checkpoints are saved to.

    Attributes:
        folder: Its path on this machine.
        holds_checkpoints: How many files in it look like checkpoints of steps that the run has still to make.
        resumes: Whether the run goes on from them, or replaces them.
        writable: Whether the run can write there.
        free_bytes: Free space; ``None`` if not known.
        checkpoint_bytes: What a checkpoint takes, by arithmetic; ``None`` if not known.
        kept: How many checkpoints are there at the end; ``None`` if not known.
    """

    folder: str
    holds_checkpoints: int = 0
    resumes: bool = False
    writable: bool = True
    free_bytes: int | None = None
    checkpoint_bytes: int | None = None
    kept: int | None = None


def check_folder(facts: FolderFacts) -> list[Finding]:
    """Checks that checkpoints can be written, and that there is space for those to be kept."""
    if not facts.writable:
        return [
            finding(
                "folder-not-writable",
                f"save_folder={facts.folder} cannot be written.",
                "The run would stop at its first checkpoint, or earlier.",
                "Choose another folder, or change its permissions.",
            )
        ]
    found: list[Finding] = []
    if facts.holds_checkpoints and not facts.resumes:
        found.append(
            finding(
                "save-folder-used",
                f"save_folder={facts.folder} holds {facts.holds_checkpoints} checkpoint files of steps that "
                "the run has still to make, and neither autoresume nor save_overwrite is set.",
                "Composer refuses a folder whose files the run could overwrite.",
                "Set autoresume: true and run_name to continue that run, or choose another folder.",
            )
        )
    if facts.free_bytes is None or facts.checkpoint_bytes is None or facts.kept is None:
        return found
    needed = facts.checkpoint_bytes * facts.kept
    if needed > facts.free_bytes:
        found.append(
            finding(
                "disk-space",
                f"save_folder={facts.folder}: {facts.kept} checkpoints of about "
                f"{_gb(facts.checkpoint_bytes)} take {_gb(needed)}; {_gb(facts.free_bytes)} are free.",
                "A checkpoint holds weights and two moments in fp32: 12 bytes per parameter. A full disk "
                "ends the run.",
                "Set save_num_checkpoints_to_keep, a longer save_interval, or another folder.",
            )
        )
    return found


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
