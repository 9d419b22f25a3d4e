"""One evaluation: model and data in, result out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import torch
import transformers

from patch_algorithm.common.version import __version__
from patch_algorithm.data.dataset.description import DATASET_JSON, read_text
from patch_algorithm.evaluation.documents import read_documents
from patch_algorithm.evaluation.measures import measure_components, measure_documents
from patch_algorithm.evaluation.models import Evaluated, load
from patch_algorithm.evaluation.paper import paper_row
from patch_algorithm.evaluation.results import FORMAT, KIND
from patch_algorithm.evaluation.zero_shot.harness import require_harness, score_tasks
from patch_algorithm.evaluation.zero_shot.items import TaskData, read_tasks
from patch_algorithm.evaluation.zero_shot.lengths import longer_than, with_answers_within

__all__ = ["evaluate"]

_UNFINISHED = (
    "The last step before this checkpoint was on patches: the model has learned to read patches, so its "
    "loss on single tokens says little yet. Evaluate a later checkpoint."
)


def evaluate(
    path: str,
    data: str,
    preset: str,
    *,
    names: Sequence[str] = (),
    limit: int | None = None,
    seq_len: int | None = None,
    stride: int | None = None,
    split: str = "val",
    batch: int = 4,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Evaluates a model.

    Args:
        path: An export or a checkpoint.
        data: Text for ``paper``, a converted dataset for ``pile``, a folder of tasks for ``zero-shot``.
        preset: ``paper``, ``pile`` or ``zero-shot``.
        names: The tasks; by default all that ``data`` has.
        limit: Items of each task; all by default.
        seq_len: Tokens of a window; the model's context by default.
        stride: Tokens from one window to the next; ``seq_len`` by default.
        split: The split of a converted dataset.
        batch: Windows at once.
        trust_remote_code: Whether Python code in an export may be run.

    Returns:
        Primitives, as they are written to ``--out``.

    Raises:
        ValueError: If model or data cannot be read, or do not belong together.
    """
    if preset == "zero-shot":
        require_harness()
    # Read before the model is loaded, which takes longer.
    documents = read_documents(data) if preset == "paper" else None
    chosen = read_tasks(data, names, limit) if preset == "zero-shot" else []
    subject = load(path, trust_remote_code=trust_remote_code)
    context = _context(subject, seq_len)
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"--stride {stride}: expected 1 to {context:,}, the length of a window.")
    cast(torch.nn.Module, subject.model).to("cuda" if torch.cuda.is_available() else "cpu")
    measures, scores = [], []
    if documents is not None:
        digest = documents.digest
        measures = [*measure_documents(subject, documents, context=context, stride=stride, batch=batch)]
    elif chosen:
        chosen = [with_answers_within(one, subject.tokenizer, context) for one in chosen]
        digest = hashlib.sha256("".join(one.digest for one in chosen).encode()).hexdigest()
        scores = score_tasks(subject, chosen, context=context, batch=batch)
    else:
        measures = measure_components(subject, data, split, context=context, stride=stride, batch=batch)
        digest = f"{split} {hashlib.sha256(read_text(data, DATASET_JSON).encode()).hexdigest()}"
    return {
        "kind": KIND,
        "format": FORMAT,
        "model": {
            "path": path,
            "parameters": subject.parameters,
            "training": None if subject.training is None else str(subject.training),
            "in_patch_stage": None if subject.training is None else subject.in_patch_stage,
        },
        "preset": preset,
        "data": {"path": data, "digest": digest},
        "seq_len": context,
        "stride": None if chosen else stride,
        "measures": [measure.to_json() for measure in measures],
        "tasks": [score.to_json() for score in scores],
        "notes": _notes(subject, preset, chosen, context, limit),
        "versions": {
            "patch-algorithm": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _context(subject: Evaluated, seq_len: int | None) -> int:
    if seq_len is None and subject.context is None:
        raise ValueError(f"The config of {subject.path} states no context. Give one with --seq-len.")
    length = (subject.context or 0) if seq_len is None else seq_len
    if length < 2 or (subject.context is not None and length > subject.context):
        limit = "" if subject.context is None else f" to {subject.context:,}, the model's context"
        raise ValueError(f"--seq-len {length}: expected 2{limit or ' or more'}.")
    return length


def _notes(
    subject: Evaluated, preset: str, chosen: Sequence[TaskData], context: int, limit: int | None
) -> list[str]:
    notes = [_UNFINISHED] if subject.in_patch_stage else []
    row = paper_row(subject.parameters)
    if preset == "paper":
        notes.append(f"{row}." if row else "The paper has no model of about this size.")
    if preset == "zero-shot":
        if row is None:
            notes.append("The paper has no model of about this size.")
        if limit is not None:
            notes.append(f"Only the first {limit:,} items of each task were scored.")
        notes += [
            f"{one.left_out:,} of {one.left_out + len(one.prompts):,} items of {one.task.name} have an "
            f"answer longer than {context:,} tokens, and were left out."
            for one in chosen
            if one.left_out
        ]
        notes += [
            f"{count:,} of {len(one.prompts):,} items of {one.task.name} are longer than {context:,} tokens; "
            "their beginning was not read."
            for one in chosen
            if (count := longer_than(context, one, subject.tokenizer))
        ]
    return notes
