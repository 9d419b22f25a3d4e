"""One evaluation: model and data in, result out."""

from __future__ import annotations

import hashlib
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

__all__ = ["evaluate"]

_UNFINISHED = (
    "The checkpoint is of a patch stage: its model has learnt to read patches, so that its loss on tokens "
    "means nothing yet. Evaluate it after the switch."
)


def evaluate(
    path: str,
    data: str,
    preset: str,
    *,
    seq_len: int | None = None,
    stride: int | None = None,
    split: str = "val",
    batch: int = 4,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Evaluates a model.

    Args:
        path: An export or a checkpoint.
        data: Text for ``paper``, a converted data set for ``pile``.
        preset: ``paper`` or ``pile``.
        seq_len: Tokens of a window; the model's context by default.
        stride: Tokens from one window to the next; ``seq_len`` by default.
        split: The split of a converted data set.
        batch: Windows at once.
        trust_remote_code: Whether Python code in an export may be run.

    Returns:
        Primitives, as they are written to ``--out``.

    Raises:
        ValueError: If model or data cannot be read, or do not belong together.
    """
    documents = read_documents(data) if preset == "paper" else None
    subject = load(path, trust_remote_code=trust_remote_code)
    context = _context(subject, seq_len)
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"--stride {stride}: expected 1 to {context:,}, the length of a window.")
    cast(torch.nn.Module, subject.model).to("cuda" if torch.cuda.is_available() else "cpu")
    if documents is not None:
        digest = documents.digest
        measures = [*measure_documents(subject, documents, context=context, stride=stride, batch=batch)]
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
        "stride": stride,
        "measures": [measure.to_json() for measure in measures],
        "notes": _notes(subject, preset),
        "versions": {
            "patch-algorithm": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _context(subject: Evaluated, seq_len: int | None) -> int:
    if seq_len is None and subject.context is None:
        raise ValueError(f"The config of {subject.path} states no context. Give one with --seq-len.")
    length = seq_len or subject.context or 0
    if length < 2 or (subject.context is not None and length > subject.context):
        limit = "" if subject.context is None else f" to {subject.context:,}, the model's context"
        raise ValueError(f"--seq-len {length}: expected 2{limit or ' or more'}.")
    return length


def _notes(subject: Evaluated, preset: str) -> list[str]:
    notes = [_UNFINISHED] if subject.in_patch_stage else []
    row = paper_row(subject.parameters)
    if preset == "paper":
        notes.append(f"{row}." if row else "The paper has no model of about this size.")
    return notes
