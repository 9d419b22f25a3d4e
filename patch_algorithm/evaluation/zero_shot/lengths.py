"""Which items of a task fit the context of a model."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from patch_algorithm.evaluation.zero_shot.items import TaskData
from patch_algorithm.evaluation.zero_shot.task_files import Prompt

__all__ = ["longer_than", "with_answers_within"]


def with_answers_within(data: TaskData, tokenizer: Any, context: int) -> TaskData:
    """Leaves out the items with an answer that has more tokens than the context: nothing can score it.

    Args:
        data: A task.
        tokenizer: The model's.
        context: Tokens that the model reads at most.

    Returns:
        The same object if all answers fit. Otherwise the digest says which items are left.

    Raises:
        ValueError: If no item is left.
    """
    fits = [_longest_answer(one, tokenizer) <= context for one in data.prompts]
    if all(fits):
        return data
    if not any(fits):
        raise ValueError(
            f"Every item in {data.path} has an answer of more than {context:,} tokens, the context. Evaluate "
            "a model with a longer context, or leave the task out with --tasks."
        )
    digest = hashlib.sha256(f"{data.digest} {fits}".encode()).hexdigest()
    items = tuple(item for item, fit in zip(data.items, fits, strict=True) if fit)
    prompts = tuple(prompt for prompt, fit in zip(data.prompts, fits, strict=True) if fit)
    return replace(data, items=items, prompts=prompts, digest=digest, left_out=fits.count(False))


def longer_than(context: int, data: TaskData, tokenizer: Any) -> int:
    """How many items do not fit the context; the last token of a text is not read."""
    texts = [max(one.contexts, key=len) + max(one.continuations, key=len, default="") for one in data.prompts]
    return sum(len(one) - 1 > context for one in tokenizer(texts, verbose=False)["input_ids"])


def _longest_answer(one: Prompt, tokenizer: Any) -> int:
    # As the harness counts: the tokens of both, less those of what stands before the answer.
    pairs = [(before, before + after) for before in one.contexts for after in one.continuations]
    before, whole = (tokenizer(list(texts), verbose=False)["input_ids"] for texts in zip(*pairs, strict=True))
    return max(len(both) - len(first) for first, both in zip(before, whole, strict=True))
