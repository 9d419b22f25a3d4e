"""The built-in text: gathered from the installation, and made into a dataset for a run."""

from __future__ import annotations

from patch_algorithm.data.corpus.prepare import (
    BuiltinCorpus,
    BuiltinCorpusTokenizer,
    builtin_corpus_tokenizer,
    prepare_builtin_corpus,
)

__all__ = ["BuiltinCorpus", "BuiltinCorpusTokenizer", "builtin_corpus_tokenizer", "prepare_builtin_corpus"]
