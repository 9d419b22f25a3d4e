"""The built-in text: gathered from the installation, and made into a dataset for a run.

What makes it is loaded on first use, so that a request for it (:mod:`.request`) can be checked without
transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from patch_algorithm.data.corpus.request import BuiltinCorpus

if TYPE_CHECKING:
    from patch_algorithm.data.corpus.prepare import (
        BuiltinCorpusTokenizer,
        builtin_corpus_tokenizer,
        prepare_builtin_corpus,
    )

__all__ = ["BuiltinCorpus", "BuiltinCorpusTokenizer", "builtin_corpus_tokenizer", "prepare_builtin_corpus"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.prepare"), name)
