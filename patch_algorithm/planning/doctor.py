"""All checks of a run that its YAML and this machine allow, before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from patch_algorithm.checks.catalogue import CATALOGUE
from patch_algorithm.checks.data import (
    check_components,
    check_loader,
    check_passes,
    check_tokenizer,
    check_tokenizer_context,
    check_vocabulary,
)
from patch_algorithm.checks.finding import Finding, by_severity, finding, skipped
from patch_algorithm.checks.hardware import check_hardware
from patch_algorithm.checks.learning_rate import check_rate, check_weight_decay
from patch_algorithm.checks.names import check_names, nearest
from patch_algorithm.checks.rate_curve import RunClock
from patch_algorithm.checks.rows import check_batches, check_eval_rows, check_row_length
from patch_algorithm.checks.saving import check_folder, check_intervals
from patch_algorithm.checks.stage_choice import check_budget, check_stage_choice
from patch_algorithm.common.arguments import is_number
from patch_algorithm.data.dataset.remote import is_url
from patch_algorithm.planning.config import resolved, value_of
from patch_algorithm.planning.data_on_disk import id_count
from patch_algorithm.planning.parameters import parameter_count
from patch_algorithm.planning.run_clock import rates_of, run_clock, scheduler_of
from patch_algorithm.planning.run_facts import (
    batch_facts,
    folder_facts,
    hardware_facts,
    interval_facts,
    loader_facts,
    resizes_embedding,
    row_facts,
    tokenizer_facts,
)
from patch_algorithm.planning.run_file import RunFile
from patch_algorithm.planning.stage_rows import check_stages

__all__ = ["accepted_findings", "examine"]

_ACCEPTED = "variables.accepted_findings"


def examine(cfg: DictConfig, path: str = "", starts_here: bool = False) -> list[Finding]:
    """Checks the configuration of a run.

    Args:
        cfg: The configuration, merged with its overrides.
        path: The file it was read from.
        starts_here: Whether the run is to start on this machine, so that a GPU or data that it lacks is an
            error; otherwise the check is skipped.

    Returns:
        What was found, the worst first. Empty for a healthy run. Findings that the configuration lists under
        ``variables.accepted_findings`` count as skipped.
    """
    found = _examine(cfg, path, starts_here)
    accepted = accepted_findings(cfg)
    if unknown := [name for name in accepted if name not in CATALOGUE]:
        meant = nearest(unknown[0], CATALOGUE)
        guess = f" Did you mean {meant}?" if meant else ""
        found.append(
            _bad_value(ValueError(f"{_ACCEPTED} names {unknown[0]!r}, which is not a check.{guess}"))
        )
    return by_severity(
        skipped(one.id, f"Accepted: {one.found}") if one.id in accepted else one for one in found
    )


def accepted_findings(cfg: DictConfig) -> tuple[str, ...]:
    """Ids of the findings that a configuration accepts; see :func:`examine`."""
    try:
        accepted = value_of(cfg, _ACCEPTED)
    except ValueError:  # reported with everything else that cannot be resolved
        return ()
    return tuple(map(str, accepted)) if isinstance(accepted, list) else ()


def _examine(cfg: DictConfig, path: str, starts_here: bool) -> list[Finding]:
    try:
        config = resolved(cfg)
    except ValueError as error:
        return [_bad_value(error)]
    found = _check_keys(config)
    try:
        run = RunFile.from_config(cfg, path)
    except ValueError as error:
        known = any(one.id in ("unknown-key", "unknown-name") and _same_key(one, error) for one in found)
        return found if known else [*found, _bad_value(error)]
    named = any(one.id == "unknown-key" and one.found.startswith("scheduler.") for one in found)
    for check in _CHECKS:
        found += check(run, run_clock(run), starts_here)
    # A misspelt argument is why the scheduler cannot be built, and says it better.
    return [one for one in found if not (named and one.id == "schedule-refused")]


def _bad_value(error: ValueError) -> Finding:
    return finding("bad-value", str(error), "The run cannot start with it.", "Correct the value.")


def _same_key(one: Finding, error: ValueError) -> bool:
    """Whether an error complains of the section whose key has been reported already."""
    section = one.found.partition(" ")[0].rpartition(".")[0]
    return bool(section) and str(error).startswith(f"{section} is ")


def _check_keys(config: dict[str, Any]) -> list[Finding]:
    # Imports llm-foundry, which takes its time; an unreadable file is reported without it.
    from patch_algorithm.planning.known_names import REQUIRED, known_names

    found = check_names(config, known_names(config))
    misspelt = " ".join(one.found for one in found)
    for key in REQUIRED:
        if config.get(key) is None and f"Did you mean {key}?" not in misspelt:
            found.append(
                finding(
                    "missing-key",
                    f"{key} is missing.",
                    "llm-foundry does not start without it.",
                    f"Set {key}.",
                )
            )
    corpus = (
        (config.get("variables") or {}).get("builtin_corpus")
        if isinstance(config.get("variables"), dict)
        else None
    )
    if corpus is not None:
        from patch_algorithm.data.corpus import BuiltinCorpus

        try:
            BuiltinCorpus.from_variables(corpus)
        except ValueError as error:
            found.append(_bad_value(error))
    return found


def _rates(run: RunFile, clock: RunClock | None, starts_here: bool) -> list[Finding]:
    try:
        curve = rates_of(run)
        unchecked = curve is None and run.algorithm is not None and scheduler_of(run) is not None
    except ValueError as error:
        return [
            finding(
                "schedule-refused",
                f"scheduler {run.scheduler.name}: {str(error).removeprefix(f'{run.scheduler.name}: ')}",
                "The trainer stops when it builds the schedule.",
                "Give its times as shares of the run ('0.1dur'), or in the unit of max_duration.",
            )
        ]
    if unchecked:
        length = run.config.get("max_duration")
        return [
            skipped(
                "rate-low-at-switch",
                f"The learning rate was not checked: max_duration={length} cannot be counted in steps: "
                "the rows, their length or the length of an epoch are not known here.",
            )
        ]
    resets = run.algorithm is not None and run.algorithm.on_switch == "reset"
    return [] if curve is None else check_rate(curve, resets)


def _optimizer(run: RunFile, clock: RunClock | None, starts_here: bool) -> list[Finding]:
    decay, lr = (run.optimizer.arguments.get(name) for name in ("weight_decay", "lr"))
    return check_weight_decay(
        run.optimizer.name or "", decay if is_number(decay) else None, lr if is_number(lr) else None
    )


def _stages(run: RunFile, clock: RunClock | None, starts_here: bool) -> list[Finding]:
    if run.algorithm is None:
        return []
    switch, end = (None, None) if clock is None else (clock.switch, clock.end)
    resets, constant = run.algorithm.on_switch == "reset", run.algorithm.constant_compute
    found = check_stage_choice(run.ks, switch, end, resets, constant)
    if not run.ks or clock is None or clock.raw_tokens is None:
        return found
    return found + check_budget(clock.raw_tokens, parameter_count(run.model))


def _rows(run: RunFile, clock: RunClock | None, starts_here: bool) -> list[Finding]:
    found = check_batches(batch_facts(run))
    for loader in run.eval_loaders:
        if loader.name in ("text", "pile"):
            found += check_eval_rows(loader.dataset.key, loader.dataset.row_tokens, run.model.context)
    try:
        check_stages(run)
    except ValueError as error:
        return [
            *found,
            finding("rows-do-not-fit", str(error), "Refused before the first step.", "See the message."),
        ]
    rows = row_facts(run)
    return found + (check_row_length(rows) if rows is not None else [])


def _data(run: RunFile, clock: RunClock | None, starts_here: bool) -> list[Finding]:
    makes_data = bool((run.config.get("variables") or {}).get("builtin_corpus"))
    train = loader_facts(run.train_loader, True, makes_data)
    evals = [loader_facts(loader, False, makes_data) for loader in run.eval_loaders]
    found: list[Finding] = []
    for loader in (train, *evals):
        for one in check_loader(loader):
            elsewhere = one.id == "data-missing" and not starts_here
            found.append(
                skipped(one.id, f"Rows and tokens were not checked: {one.found}") if elsewhere else one
            )
    found += _not_read(run)
    found += check_components(train, evals)
    if run.changes_data or clock is None:
        return found
    if run.train_loader.dataset.is_mixture:
        return [*found, _mixed(run.train_loader.dataset.key)]
    return found + check_passes(clock.raw_tokens, run.train_loader.dataset.pass_tokens)


def _mixed(key: str) -> Finding:
    return skipped(
        "passes-over-data",
        f"Passes over the data were not counted: {key}.components weighs several components, and each of "
        "them is read another number of times. The loader's log says how often in an epoch.",
    )


def _not_read(run: RunFile) -> list[Finding]:
    """Says of which loaders nothing was checked, because their data is elsewhere, or in several places."""
    streams = [
        skipped(
            "data-missing",
            f"Rows and tokens were not checked: {loader.dataset.key}.streams names datasets, which are not "
            "read here.",
        )
        for loader in (run.train_loader, *run.eval_loaders)
        if loader.dataset.arguments.get("streams")
    ]
    if run.changes_data:
        streams.append(
            skipped(
                "data-missing",
                "Rows and tokens were not checked: callbacks.curriculum_learning.schedule names datasets, "
                "which are not read here. Passes over the data are not counted.",
            )
        )
    return streams + [
        skipped(
            "data-missing",
            f"Rows and tokens were not checked: {loader.dataset.key}: {loader.dataset.remote} is remote and "
            "was not read.",
        )
        for loader in (run.train_loader, *run.eval_loaders)
        if loader.name in ("text", "pile")
        and loader.dataset.on_disk is None
        and loader.dataset.remote
        and is_url(loader.dataset.remote)
    ]


def _tokenizer(run: RunFile, clock: RunClock | None, starts_here: bool) -> list[Finding]:
    facts = tokenizer_facts(run)
    found = [] if facts is None else check_tokenizer(facts)
    stated = (run.tokenizer.arguments.get("kwargs") or {}).get("model_max_length")
    if "hf_checkpointer" in run.callbacks and isinstance(stated, int):
        found += check_tokenizer_context(stated, run.model.context)
    on_disk = run.train_loader.dataset.on_disk
    if on_disk is not None and on_disk.info is not None:
        written = on_disk.info.tokenizer
        ids = id_count(on_disk.info, on_disk.info_folder)
        # Resizing goes by the tokenizer's entries, which leaves ids without one where they have holes.
        resizes = resizes_embedding(run) and ids <= written.vocab_size
        found += check_vocabulary(run.model.vocab_size, ids, written.name, resizes)
    return found


def _hardware(run: RunFile, clock: RunClock | None, starts_here: bool) -> list[Finding]:
    return check_hardware(hardware_facts(run, starts_here))


def _saving(run: RunFile, clock: RunClock | None, starts_here: bool) -> list[Finding]:
    found = check_intervals(interval_facts(run, clock))
    folder = folder_facts(run, clock)
    return found + (check_folder(folder) if folder is not None else [])


_CHECKS: tuple[Callable[[RunFile, RunClock | None, bool], list[Finding]], ...] = (
    _rates,
    _optimizer,
    _stages,
    _rows,
    _data,
    _tokenizer,
    _hardware,
    _saving,
)
