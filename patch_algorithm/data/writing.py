"""From documents to what llm-foundry reads: a tokenizer folder and MDS shards of token rows."""

# The stubs of `tokenizers` know neither its properties nor the arguments of its constructors.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from streaming import MDSWriter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from patch_algorithm.data.gather import progress_bar

__all__ = ["END_OF_TEXT", "PADDING", "split_documents", "train_tokenizer", "write_rows"]

END_OF_TEXT = "<|endoftext|>"
# A token of its own: llm-foundry's collator ignores labels equal to the padding token, and the end
# of a document is worth learning.
PADDING = "<|padding|>"

_DOCUMENTS_AT_ONCE = 64
# Enough for a vocabulary of some thousands; more would only take longer.
_CHARACTERS_TO_LEARN_FROM = 3_000_000


def split_documents(documents: Sequence[str], val_share: float) -> tuple[list[str], list[str]]:
    """Splits documents into train and val by their hash, so that neither order nor number matters."""
    train: list[str] = []
    val: list[str] = []
    for text in documents:
        digest = hashlib.sha256(text.encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") < val_share * 2**64
        (val if held_out else train).append(text)
    return train, val


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


def write_rows(documents: Sequence[str], tokenizer: Tokenizer, row_tokens: int, folder: Path) -> int:
    """Writes documents, joined by the end-of-text token and cut into rows, as MDS shards.

    The column ``tokens`` holds ``row_tokens`` unsigned 16-bit integers, which llm-foundry's ``text``
    loader reads as they are. What is left at the end and does not fill a row is dropped.

    Returns:
        The number of rows.
    """
    rows = 0
    rest = np.empty(0, dtype=np.uint16)
    with (
        MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{row_tokens}"}) as writer,
        progress_bar(f"writing {folder.name}", len(documents), " documents") as bar,
    ):
        for encoded in _encoded(documents, tokenizer):
            tokens = np.concatenate([rest, *encoded])
            whole = len(tokens) // row_tokens * row_tokens
            for row in tokens[:whole].reshape(-1, row_tokens):
                writer.write({"tokens": row})
            rows += whole // row_tokens
            rest = tokens[whole:]
            bar.update(len(encoded))
    return rows


def _first(documents: Sequence[str], characters: int) -> Iterator[str]:
    for text in documents:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def _encoded(documents: Sequence[str], tokenizer: Tokenizer) -> Iterator[list[np.ndarray]]:
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    remaining = iter(documents)
    while some := list(islice(remaining, _DOCUMENTS_AT_ONCE)):
        yield [
            np.array([*encoding.ids, end_of_text], dtype=np.uint16)
            for encoding in tokenizer.encode_batch_fast(some)
        ]
