"""The model card of an export: what it is, how it was trained, and how it did."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from patch_algorithm.checkpoints.export_folder import read_json
from patch_algorithm.common.files import write_atomically
from patch_algorithm.common.version import __version__
from patch_algorithm.evaluation.results import as_result, numbers
from patch_algorithm.export.check import ExportReport
from patch_algorithm.planning.run_file import RunFile

__all__ = ["CARD", "Results", "read_results", "render_card", "require_no_card", "write_card"]

CARD = "README.md"
Results = tuple[tuple[str, str, str], ...]
"""Task, measure and value of each result."""


def require_no_card(folder: Path, overwrite: bool) -> None:
    """Refuses to replace a card.

    Raises:
        ValueError: If there is one.
    """
    if (folder / CARD).exists() and not overwrite:
        raise ValueError(f"{folder / CARD} exists, and is not overwritten. Add --overwrite to replace it.")


def read_results(path: Path) -> Results:
    """Reads what `patch-level eval --out` has written, or results in the form of lm-evaluation-harness.

    That is ``{"results": {task: {measure: number}}}``, where a measure may have a filter after a comma, as
    in ``acc_norm,none``. Values that are not numbers are left out; standard errors follow their values.

    Raises:
        ValueError: If the file is not of that form.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    content = read_json(path)
    if (own := as_result(content, str(path))) is not None:
        return _own(own)
    results = content.get("results")
    if not isinstance(results, dict) or not all(isinstance(one, dict) for one in results.values()):
        raise ValueError(
            f"{path} holds no results: expected what `patch-level eval --out` writes, or "
            '{"results": {task: {measure: number}}}, as lm-evaluation-harness does.'
        )
    rows = [
        (str(task), measure.partition(",")[0], _value(measures, measure))
        for task, measures in results.items()
        for measure, value in measures.items()
        if _is_number(value) and "_stderr" not in measure
    ]
    if not rows:
        raise ValueError(f"{path} holds no numbers among its results.")
    return tuple(rows)


def _own(result: dict[str, Any]) -> Results:
    data = Path(result["data"]["path"]).name
    return tuple(
        (
            one.name if result["preset"] == "zero-shot" else f"{data}: {one.name}",
            one.measure,
            f"{one.value:.4g}" + ("" if one.error is None else f" ± {one.error:.2g}"),
        )
        for one in numbers(result)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value(measures: dict[str, Any], measure: str) -> str:
    name, comma, filtered = measure.partition(",")
    error = measures.get(f"{name}_stderr{comma}{filtered}")
    return f"{measures[measure]:.4g}" + (f" ± {error:.2g}" if _is_number(error) else "")


def render_card(report: ExportReport, run: RunFile | None = None, results: Results = ()) -> str:
    """The text of the card.

    Args:
        report: What was found of the export.
        run: The run's configuration, for its data.
        results: What :func:`read_results` returned.
    """
    environment = Environment(
        loader=PackageLoader("patch_algorithm.export", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    export, training, compared = report.export, report.training, report.comparison
    plan = None if training is None else training.plan
    planned = "" if run is None or run.plan is None else _sentence(str(run.plan))
    return environment.get_template("card.md.j2").render(
        name=export.path.resolve().name if run is None or run.run_name is None else run.run_name,
        folder=export.path.resolve().name,
        architecture=export.architecture,
        parameters=f"{report.parameters:,}",
        context=f"{export.context:,}" if export.context else None,
        vocabulary=f"{report.vocabulary:,}",
        dtype=report.stored,
        own_code=bool(export.own_code),
        unfinished=training.k if training is not None and training.in_patch_stage else None,
        patches=bool(plan and plan.stages) or bool(training is None and run is not None and run.ks),
        stages=() if training is None else training.stages,
        tokens="" if training is None else f"{training.tokens:,}",
        ratio="" if training is None else f"{training.patch_share:.3g}",
        switch=plan.switch.to_timestring() if plan is not None and plan.switch is not None else None,
        compute=None
        if training is None or training.compute_share is None
        else f"{training.compute_share:.3g}",
        planned=planned,
        data=_data(run),
        checked=None
        if compared is None
        else f"all {compared.weights} weights equal, logits within {compared.largest_difference:.2g}.",
        results=results,
        version=__version__,
    )


def write_card(folder: Path, text: str) -> Path:
    """Writes the card into the export, and returns its path."""
    write_atomically(folder / CARD, text)
    return folder / CARD


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _data(run: RunFile | None) -> str | None:
    """Where the data of a run came from, as far as its description says."""
    on_disk = None if run is None else run.train_loader.dataset.on_disk
    if on_disk is None or on_disk.info is None:
        return None
    info = on_disk.info
    parts = [f"from {', '.join(info.sources)}"] if info.sources else []
    if on_disk.components:
        parts.append(f"components {', '.join(on_disk.components)}")
    if on_disk.tokens is not None:
        parts.append(f"{on_disk.tokens:,} tokens in rows of {on_disk.row_tokens:,}")
    return "; ".join([*parts, f"tokenizer {info.tokenizer.name}"])
