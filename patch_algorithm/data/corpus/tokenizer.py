"""Trains the tokenizer of the built-in corpus."""

# The stubs of `tokenizers` know neither its properties nor the arguments of its constructors.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

__all__ = ["END_OF_TEXT", "PADDING", "train_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
# A token of its own: llm-foundry's collator ignores labels equal to the padding token, and the end
# of a document is worth learning.
PADDING = "<|padding|>"

# Enough for a vocabulary of some thousands; more would only take longer.
_CHARACTERS_TO_LEARN_FROM = 3_000_000


def train_tokenizer(documents: Sequence[str], vocab_size: int, folder: Path) -> Tokenizer:
    """Trains a byte-level BPE tokenizer and saves it as a ``PreTrainedTokenizerFast``.

    Args:
        documents: The text to learn from; the first megabytes of it are enough.
        vocab_size: Most entries of the vocabulary, special tokens and the 256 bytes among them.
        folder: Where to save it.

    Returns:
        The tokenizer, set to read the special tokens in a text as ordinary text: documentation
        mentions ``<|endoftext|>`` without ending there.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(documents, _CHARACTERS_TO_LEARN_FROM), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PADDING
    ).save_pretrained(str(folder))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _first(documents: Sequence[str], characters: int) -> Iterator[str]:
    for text in documents:
        if characters <= 0:
            return
        characters -= len(text)
        yield text
