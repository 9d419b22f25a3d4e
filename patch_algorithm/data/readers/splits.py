"""Which split the documents of a file belong to, by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

__all__ = ["SPLITS", "Splits", "named_split"]

Splits = Literal["by-name", "all-train"]

SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""The splits that files can belong to, and what Hugging Face datasets call them."""

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}


def named_split(parts: Sequence[str]) -> str | None:
    """The split that a file is named for, if it is.

    Args:
        parts: The names of the folders that lead to it, and its own.

    Returns:
        ``train``, ``val`` or ``test``: of the first folder that is called so, or else of the first word of
        the file's name that is.

    Examples:
        >>> named_split(["pile", "val.jsonl.zst"]), named_split(["c4-train.00000-of-01024.json.gz"])
        ('val', 'train')
    """
    *folders, name = parts
    words = [*folders, *re.split(r"[^a-zA-Z]+", name)]
    return next((_SPLIT_OF[word.lower()] for word in words if word.lower() in _SPLIT_OF), None)
