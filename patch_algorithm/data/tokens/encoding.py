"""From texts to token ids, exactly as the tokenizer has them, in bounded memory.

A worker needs ``tokenizers`` and numpy alone: the driver loads the tokenizer with transformers and hands
on what decides the ids, an :class:`EncodingSpec`.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tokenizers import Tokenizer

from patch_algorithm.data.tokens.cutting import Cutter, TextPiece, UncuttableText
from patch_algorithm.data.tokens.identity import PROBE, fingerprint, largest_id

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

__all__ = ["Encoder", "EncodingSpec", "TokenizerSpec", "UncuttableText", "load_tokenizer"]

_BATCH_CHARACTERS = 1 << 20
# Measured in characters. A tokenizer that reads a piece as one word (Llama-2) is a third faster on short
# pieces; one that divides it into words first (GPT-2, GPT-NeoX) is a tenth slower on them.
_PIECE_AS_WORD = 1 << 14
_PIECE_OF_WORDS = 1 << 17
# Six million characters that cannot be cut, such as spaces or digits alone, take up to 1 GB (Llama-2).
_LONGEST_PIECE = 6_000_000


@dataclass(frozen=True)
class EncodingSpec:
    """All that a worker needs for encoding; it can be pickled.

    Args:
        tokenizer_json: The tokenizer in the format of the ``tokenizers`` library.
        eos_id: What is added after each text; ``None`` adds nothing.
        bos_id: What is added before each text; ``None`` adds nothing.
        special_tokens: ``text`` reads a string such as ``<|endoftext|>`` in a text as the characters it
            is made of; ``allow`` as the tokenizer itself does.
        dtype: ``uint16`` or ``uint32``, what the ids are returned as.
        engine: The library that makes the ids; see :mod:`patch_algorithm.data.tokens.engine`.
    """

    tokenizer_json: str
    eos_id: int | None
    bos_id: int | None
    special_tokens: Literal["text", "allow"]
    dtype: str
    engine: Literal["tokenizers", "fast"] = "tokenizers"


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer as the driver knows it.

    Attributes:
        name: What was asked for.
        tokenizer: The tokenizer; its ``save_pretrained`` writes the folder beside the data.
        fingerprint: See :func:`patch_algorithm.data.tokens.identity.fingerprint`.
        vocab_size: Its entries, added tokens among them.
        eos_id: The end-of-sequence token, if it has one.
        bos_id: The beginning-of-sequence token, if it has one.
        dtype: The smallest unsigned type that holds every id, ``uint16`` or ``uint32``.
    """

    name: str
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str
    vocab_size: int
    eos_id: int | None
    bos_id: int | None
    dtype: str

    def encoding(
        self, *, eos: bool = True, bos: bool = False, special_tokens: Literal["text", "allow"] = "text"
    ) -> EncodingSpec:
        """What a worker needs, with or without the tokens at a text's ends.

        Raises:
            ValueError: If a token is asked for that the tokenizer does not have, or if it cannot read
                special tokens as text.
        """
        for asked, token_id, kind in ((eos, self.eos_id, "eos"), (bos, self.bos_id, "bos")):
            if asked and token_id is None:
                raise ValueError(
                    f"the tokenizer {self.name!r} has no {kind.upper()} token; convert with --no-{kind}, or "
                    f"set {kind}_token in its tokenizer_config.json."
                )
        spec = EncodingSpec(
            tokenizer_json=self.tokenizer.backend_tokenizer.to_str(),
            eos_id=self.eos_id if eos else None,
            bos_id=self.bos_id if bos else None,
            special_tokens=special_tokens,
            dtype=self.dtype,
        )
        if special_tokens == "text":
            self._check_special_tokens_are_text(spec)
        return spec

    def _check_special_tokens_are_text(self, spec: EncodingSpec) -> None:
        # A Unigram or WordLevel vocabulary may hold the token as a word like any other.
        encoder = Encoder(replace(spec, eos_id=None, bos_id=None))
        for token_id in (self.eos_id, self.bos_id):
            if token_id is None:
                continue
            token = str(self.tokenizer.convert_ids_to_tokens(token_id))
            if any(token_id in ids for ids in encoder.encode([token, f" a {token} b", f"a{token}b"])):
                raise ValueError(
                    f"the tokenizer {self.name!r} always reads {token!r} in a text as its special "
                    "token, so a document that mentions it would seem to end or begin there. Convert with "
                    "--special-tokens allow to accept that, or use another tokenizer."
                )


def load_tokenizer(name_or_dir: str) -> TokenizerSpec:
    """Loads a tokenizer from a folder or, by its name, from the Hugging Face hub or its cache.

    Raises:
        ValueError: If there is no such tokenizer, it is not one of the ``tokenizers`` library (a "fast"
            one), or it does something beyond that library that decides ids.
    """
    from transformers.models.auto.tokenization_auto import AutoTokenizer
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

    name = os.path.expanduser(name_or_dir)
    # transformers would report a mistyped folder as a network problem.
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.exists(name)
    if not os.path.isdir(name) and (looks_like_path or not name):
        raise ValueError(f"there is no tokenizer folder {name_or_dir!r}; expected a folder or a hub name.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    # Unreadable files raise all kinds, down to Exception itself from the Rust side.
    except Exception as error:
        if os.path.isdir(name):
            raise ValueError(f"the folder {name_or_dir!r} holds no loadable tokenizer: {error}") from error
        raise ValueError(
            f"{name_or_dir!r} is neither a local folder nor a hub name with a loadable tokenizer: {error}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"the tokenizer {name_or_dir!r} is a slow one in Python ({type(tokenizer).__name__}); a fast "
            "one (with a tokenizer.json) is needed: load it once with from_slow=True and save it."
        )
    _check_backend(tokenizer, name_or_dir)
    return TokenizerSpec(
        name=name_or_dir,
        tokenizer=tokenizer,
        fingerprint=fingerprint(tokenizer),
        vocab_size=len(tokenizer),
        eos_id=_id(tokenizer.eos_token_id),
        bos_id=_id(tokenizer.bos_token_id),
        dtype="uint16" if max(len(tokenizer) - 1, largest_id(tokenizer)) < 2**16 else "uint32",
    )


class Encoder:
    """Encodes texts as the tokenizer would, in bounded memory.

    A long text is encoded in pieces, which the tokenizer would otherwise need gigabytes for; see
    :class:`patch_algorithm.data.tokens.cutting.Cutter` for how it is cut without a change of ids. Whether the
    library uses threads within a batch is for the caller to say, with ``TOKENIZERS_PARALLELISM``.

    Args:
        spec: The tokenizer, and what is added to each text.
        piece_characters: Texts that are clearly longer are cut into pieces of about this length; by default
            of what is fastest for the tokenizer.
        longest_piece: How long a piece may become where there is no place to cut.
    """

    checked = 0  # as CheckedEncoder has it

    def __init__(
        self,
        spec: EncodingSpec,
        *,
        piece_characters: int | None = None,
        longest_piece: int = _LONGEST_PIECE,
    ) -> None:
        self._tokenizer = tokenizer = Tokenizer.from_str(spec.tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = spec.special_tokens == "text"
        if piece_characters is None:
            piece_characters = _PIECE_OF_WORDS if tokenizer.pre_tokenizer else _PIECE_AS_WORD
        self._cutter = Cutter(tokenizer, piece_characters, longest_piece)
        self._dtype = np.dtype(spec.dtype)
        self._head = [] if spec.bos_id is None else [spec.bos_id]
        self._tail = [] if spec.eos_id is None else [spec.eos_id]
        self._encode_pieces: Callable[[list[str]], Sequence[Sequence[int] | np.ndarray]] = self._by_tokenizers

    def with_pieces(self, encode_pieces: Callable[[list[str]], Sequence[np.ndarray]]) -> Encoder:
        """The same encoder, with the pieces of texts encoded by another library."""
        other = copy(self)
        other._encode_pieces = encode_pieces
        return other

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes texts.

        Returns:
            For each text its ids ``[n]``, BOS and EOS where they are added, in the spec's dtype: those of
            ``tokenizer(text, add_special_tokens=False)``, with ``split_special_tokens=True`` where special
            tokens are text.

        Raises:
            UncuttableText: If a text is very long and there is no place to cut it; ``index`` says which.
                It is raised before anything is encoded.
        """
        plan = [self._pieces(index, text) for index, text in enumerate(texts)]
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        for batch in _batches(plan):
            encoded = self._encode_pieces([texts[index][piece.start : piece.end] for index, piece in batch])
            for (index, piece), ids in zip(batch, encoded, strict=True):
                parts[index].append(self._ids(ids, piece, last=piece is plan[index][-1]))
        return [own[0] if len(own) == 1 else np.concatenate(own) for own in parts]

    def _by_tokenizers(self, pieces: list[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def _pieces(self, index: int, text: str) -> list[TextPiece]:
        try:
            return self._cutter.cut(text)
        except UncuttableText as error:
            error.index = index
            raise

    def _ids(self, ids: Sequence[int] | np.ndarray, piece: TextPiece, last: bool) -> np.ndarray:
        head = self._head if piece.start == 0 else []
        tail = self._tail if last else []
        if isinstance(ids, np.ndarray):
            return np.concatenate((head, ids[piece.carried :], tail), dtype=self._dtype, casting="unsafe")
        if head or tail or piece.carried:
            ids = [*head, *ids[piece.carried :], *tail]
        # Three times as fast as np.array(ids, dtype=...), which is several per cent of the encoding.
        return np.frombuffer(array("I", ids), dtype=np.uintc).astype(self._dtype)


def _batches(plan: Sequence[Sequence[TextPiece]]) -> Iterator[list[tuple[int, TextPiece]]]:
    batch: list[tuple[int, TextPiece]] = []
    characters = 0
    for index, pieces in enumerate(plan):
        for piece in pieces:
            batch.append((index, piece))
            characters += piece.end - piece.start
            if characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


def _check_backend(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model.get("dropout"):
        raise ValueError(
            f"the tokenizer {name!r} drops merges at random (dropout {model['dropout']}), so the same text "
            "would get different ids each time; remove the dropout from its tokenizer.json."
        )
    expected = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    if tokenizer.backend_tokenizer.encode(PROBE, add_special_tokens=False).ids != expected:
        raise ValueError(
            f"the tokenizer {name!r} ({type(tokenizer).__name__}) does more in Python than its "
            "tokenizer.json says, which conversion does not support."
        )


def _id(token_id: Any) -> int | None:
    return None if token_id is None else int(token_id)
