"""All checks of an export, and the fixes that can be made in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers

from patch_algorithm.checkpoints.export_folder import ExportFolder, read_export
from patch_algorithm.checkpoints.loading import (
    Loaded,
    StoredTypes,
    embedding_rows,
    load_model,
    load_tokenizer,
    parameters,
    probe_ids,
    require_fitting_vocabulary,
    require_trust,
)
from patch_algorithm.checkpoints.trained import Trained, read_checkpoint
from patch_algorithm.checkpoints.training import Training
from patch_algorithm.checks.finding import Finding, by_severity, finding, skipped
from patch_algorithm.export.comparison import RELATIVE_TOLERANCE, Comparison, compare
from patch_algorithm.export.misreading import find_misreading, rename_model_type
from patch_algorithm.export.tokenizers import (
    check_tokenizer,
    require_checkpoints_tokenizer,
    require_datas_tokenizer,
    write_context,
    write_end_of_text,
)
from patch_algorithm.planning.run_file import RunFile

__all__ = ["ExportReport", "check_export", "mend"]


@dataclass(frozen=True)
class ExportReport:
    """What was found of an export.

    Attributes:
        export: The folder.
        parameters: Parameters of the model, tied ones once.
        vocabulary: Rows of its embedding.
        stored: The types that its weights are stored in.
        findings: The worst first.
        checkpoint: The checkpoint that it was compared with.
        training: What that says of the run.
        comparison: Export against checkpoint.
        changes: What was fixed before.
    """

    export: ExportFolder
    parameters: int
    vocabulary: int
    stored: str
    findings: tuple[Finding, ...]
    checkpoint: str | None = None
    training: Training | None = None
    comparison: Comparison | None = None
    changes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The facts in primitives, without the findings."""
        compared, training = self.comparison, self.training
        return {
            "folder": str(self.export.path),
            "architecture": self.export.architecture,
            "parameters": self.parameters,
            "context": self.export.context,
            "vocabulary": self.vocabulary,
            "dtype": self.stored,
            "own_code": list(self.export.own_code),
            "transformers": transformers.__version__,
            "checkpoint": self.checkpoint,
            "training": None
            if training is None
            else {
                "stages": [{"k": one.k, "steps": one.steps, "tokens": one.tokens} for one in training.stages],
                "in_patch_stage": training.in_patch_stage,
                "compute_share": training.compute_share,
            },
            "comparison": None
            if compared is None
            else {
                "largest_difference": compared.largest_difference,
                "tolerance": compared.tolerance,
                "positions": compared.positions,
                "weights": compared.weights,
                "weights_that_differ": list(compared.differing),
            },
            "changes": list(self.changes),
        }

    def to_text(self) -> str:
        """The facts in lines, without the findings."""
        context = "" if self.export.context is None else f", context {self.export.context:,}"
        lines = [
            f"{self.export.path}: {self.export.architecture}, {self.parameters:,} parameters in {self.stored}"
            f"{context}, read by transformers {transformers.__version__}"
        ]
        if self.export.own_code:
            lines.append(
                f"code of its own: {', '.join(self.export.own_code)}; load with trust_remote_code=True"
            )
        if self.training is not None:
            lines.append(f"checkpoint {self.checkpoint}: {self.training}")
        if (compared := self.comparison) is not None:
            rounded = "" if compared.rounded_to is None else f", rounded to {compared.rounded_to}"
            equal = compared.weights - len(compared.differing)
            lines += [
                f"weights: {equal} of {compared.weights} tensors are the checkpoint's bit by bit{rounded}",
                f"logits: largest difference {compared.largest_difference:.2g} at {compared.positions:,} "
                f"positions; tolerance {compared.tolerance:.2g}, {RELATIVE_TOLERANCE:g} of the largest logit",
            ]
        return "\n".join([*lines, *(f"changed {change}" for change in self.changes)])


def check_export(
    path: Path,
    checkpoint: str | None = None,
    config: str | None = None,
    *,
    force: bool = False,
    trust_remote_code: bool = False,
    changes: tuple[str, ...] = (),
) -> ExportReport:
    """Loads an export in plain transformers and compares it with the run.

    Args:
        path: The folder.
        checkpoint: The Composer checkpoint that it was made of.
        config: The run's YAML.
        force: Also if the checkpoint's last step was on patches.
        trust_remote_code: Whether Python code in the folder may be run.
        changes: What was fixed before, for the report.

    Raises:
        ValueError: If one of them is missing or damaged, or they do not belong together.
    """
    export = read_export(path)
    require_trust(export, trust_remote_code)
    run = None if config is None else RunFile.read(config)
    trained = None if checkpoint is None else read_checkpoint(checkpoint)
    findings = list(_check_training(trained, run, force))
    tokenizer = load_tokenizer(export)
    if trained is not None and trained.tokenizer is not None:
        require_checkpoints_tokenizer(tokenizer, trained.tokenizer)
    data = None if run is None else run.train_loader.dataset.on_disk
    if data is not None and data.info is not None:
        require_datas_tokenizer(tokenizer, data.info, data.info_folder)
    loaded = load_model(export)
    require_fitting_vocabulary(tokenizer, loaded.model)
    vocabulary = embedding_rows(loaded.model)
    ids_BT = probe_ids(export, vocabulary)
    comparison, compared = _compare(export, loaded, trained, ids_BT)
    findings += compared
    findings += _check_loading(loaded)
    findings += _check_reading(export, loaded, ids_BT)
    findings += check_tokenizer(export, tokenizer, loaded.model)
    return ExportReport(
        export=export,
        parameters=parameters(loaded.model),
        vocabulary=vocabulary,
        stored=str(StoredTypes.of_export(export)),
        findings=tuple(by_severity(findings)),
        checkpoint=checkpoint,
        training=None if trained is None else trained.training,
        comparison=comparison,
        changes=changes,
    )


def mend(report: ExportReport) -> tuple[str, ...]:
    """Fixes in the folder what can be fixed, and says what was changed.

    Raises:
        ValueError: If a file is not as expected; earlier fixes stay.
    """
    found, changes = {one.id for one in report.findings}, []
    if "export-misread" in found:
        changes += rename_model_type(report.export)
    if "export-context" in found:
        changes.append(write_context(report.export))
    if "export-end-of-text" in found:
        changes.append(write_end_of_text(report.export, load_tokenizer(report.export)))
    return tuple(changes)


def _check_training(trained: Trained | None, run: RunFile | None, force: bool) -> Iterator[Finding]:
    if trained is None:
        return
    training = trained.training
    if training.in_patch_stage:
        if not force:
            raise ValueError(
                f"The last step before {trained.path} was on patches of {training.k} ({training.plan}; step "
                f"{training.steps:,}): the model has learned to read patches, and is not finished. Take the "
                "export and the checkpoint of the end of the run, or add --force."
            )
        yield finding(
            "export-patch-stage",
            f"The last step before the checkpoint was on patches of {training.k} ({training.plan}; step "
            f"{training.steps:,}).",
            "The model has learned to read patches, and reads single tokens badly.",
            "Take the export of the end of the run.",
        )
    planned = None if run is None or run.plan is None else run.plan.stages
    stages = () if training.plan is None else training.plan.stages
    if planned is not None and str(planned) != str(stages):
        yield finding(
            "export-other-run",
            f"By the configuration the run has {run.plan if run else None}, by the checkpoint "
            f"{training.plan or 'no patch stage'}.",
            "The configuration may be of another run; a card would name its data.",
            "Give the configuration that the run was started with, overrides included.",
        )


def _compare(
    export: ExportFolder, loaded: Loaded, trained: Trained | None, ids_BT: Any
) -> tuple[Comparison | None, list[Finding]]:
    if trained is None:
        return None, [skipped("export-differs", "Not compared with a checkpoint: none was given.")]
    found = compare(loaded.model, trained.model, StoredTypes.of_export(export), ids_BT)
    if found.agrees:
        return found, []
    return found, [
        finding(
            "export-differs",
            f"{len(found.differing)} of {found.weights} weights are not the checkpoint's"
            f"{f', such as {found.differing[0]}' if found.differing else ''}; logits differ by up to "
            f"{found.largest_difference:.3g}, where {found.tolerance:.2g} is allowed.",
            "The export is another model than the one that was trained, or that of another step.",
            "Compare it with the checkpoint of the same step, or export again.",
        )
    ]


def _check_loading(loaded: Loaded) -> Iterator[Finding]:
    for names, what, why in (
        (
            loaded.missing,
            "weights of the model are not in the files",
            "transformers initializes them at random.",
        ),
        (
            loaded.unused,
            "weights in the files are not in the model",
            "The model is not the one that was saved.",
        ),
    ):
        if names:
            yield finding("export-weights", f"{len(names)} {what}, such as {names[0]}.", why, "Export again.")


def _check_reading(export: ExportFolder, loaded: Loaded, ids_BT: Any) -> Iterator[Finding]:
    found = find_misreading(export, loaded.model, ids_BT, RELATIVE_TOLERANCE)
    if found is not None:
        yield finding(
            "export-misread",
            f"Without trust_remote_code=True transformers loads its own {found.class_name}: "
            f"{found.parameters:,} parameters instead of {parameters(loaded.model):,}, {found.unused} "
            f"weights left out, logits that differ by up to {found.largest_difference:.2g}.",
            f"It does not warn, because it knows the model_type {export.model_type!r}.",
            "--fix gives the export a model_type that transformers does not know, so that such a load is "
            "refused.",
        )
