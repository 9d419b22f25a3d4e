"""Which library makes the ids: ``tokenizers``, or ``fastokens`` as far as it is checked against that.

``fastokens`` takes a tenth of the time and less. It is a reimplementation, so it is trusted in steps: it has
to agree on some ten thousand probes before it begins, and on one document in a hundred while it works.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from patch_algorithm.data.tokens.encoding import Encoder, EncodingSpec
from patch_algorithm.data.tokens.probes import probes

__all__ = ["CheckedEncoder", "EngineChoice", "EnginesDiffer", "choose_engine", "make_encoder"]

_PACKAGE = "fastokens"
_CHECKED_SHARE = 100
"""One document in so many is encoded by both."""
_LITTLE = 4 << 20  # bytes, which tokenizers encodes in the time that the probes take


class EnginesDiffer(Exception):
    """A document that the two engines give different ids.

    Attributes:
        index: Its place among the texts that were to be encoded.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclass(frozen=True)
class EngineChoice:
    """The engine of a conversion.

    Attributes:
        spec: What the encoders are made from.
        version: The library and its version.
        probes: On how many probes it agreed with ``tokenizers``; 0 where it is that.
        reason: Why it is ``tokenizers`` where another one was asked for or tried.
    """

    spec: EncodingSpec
    version: str
    probes: int = 0
    reason: str | None = None

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else f", which agrees on {self.probes:,} probes"
        return f"ids are made by {self.version}{why if self.reason or self.probes else ''}"


def choose_engine(
    spec: EncodingSpec, asked: Literal["auto", "tokenizers", "fast"] = "auto", size: int | None = None
) -> EngineChoice:
    """Chooses the engine.

    Args:
        spec: The tokenizer, and what is added to each text.
        asked: ``fast`` is ``fastokens``; ``auto`` is that where it is installed, loads the tokenizer, and
            agrees with ``tokenizers`` on every probe, unless there is too little text to gain anything.
        size: Bytes to read, if that is known.

    Raises:
        ValueError: If ``fast`` is asked for and not available.
    """
    plain = EngineChoice(replace(spec, engine="tokenizers"), f"tokenizers {metadata.version('tokenizers')}")
    if asked == "tokenizers":
        return plain
    if asked == "auto" and size is not None and size < _LITTLE:
        return replace(plain, reason="there is little text.")
    found = _try(spec)
    if isinstance(found, int):
        fast = replace(spec, engine="fast")
        return EngineChoice(fast, f"{_PACKAGE} {metadata.version(_PACKAGE)}", probes=found)
    if asked == "fast":
        raise ValueError(f"--encoder fast: {found} Use --encoder auto or tokenizers.")
    return replace(plain, reason=found)


def make_encoder(spec: EncodingSpec) -> Encoder | CheckedEncoder:
    """The encoder that a spec asks for; the plain one where a node of a cluster lacks the other."""
    if spec.engine == "fast":
        with suppress(ImportError):
            return CheckedEncoder(spec)
    return Encoder(spec)


class CheckedEncoder:
    """Encodes with ``fastokens``, and one document in a hundred with ``tokenizers`` too.

    So are documents that have the text of an added token in them, unless that is white space alone.

    Args:
        spec: The tokenizer, and what is added to each text.

    Attributes:
        checked: How many documents have been encoded by both.
    """

    def __init__(self, spec: EncodingSpec) -> None:
        self.checked = 0
        self._exact = Encoder(spec)
        self._fast = self._exact.with_pieces(_fast_pieces(spec))
        self._added = _added_texts(spec.tokenizer_json)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes texts, as :meth:`patch_algorithm.data.tokens.encoding.Encoder.encode` does.

        Raises:
            EnginesDiffer: If a document that both encoded has different ids. What was encoded since the last
                check is not to be trusted: it has to be encoded again by ``tokenizers``.
            UncuttableText: As there.
        """
        found = self._fast.encode(texts)
        both = [index for index, text in enumerate(texts) if self._is_checked(text)]
        expected = self._exact.encode([texts[index] for index in both])
        for index, ids in zip(both, expected, strict=True):
            if not np.array_equal(found[index], ids):
                raise EnginesDiffer(index)
        self.checked += len(both)
        return found

    def _is_checked(self, text: str) -> bool:
        if zlib.crc32(text.encode(errors="replace")) % _CHECKED_SHARE == 0:
            return True
        return self._added is not None and self._added.search(text) is not None


def _try(spec: EncodingSpec) -> int | str:
    """The number of probes that the fast engine agrees on, or why it is none."""
    try:
        fast = _fast_pieces(spec)
    except ImportError:
        return f"{_PACKAGE} is not installed; `pip install 'patch-algorithm[fast]'` installs it."
    # What it cannot read it refuses with errors of several kinds, down to Exception itself.
    except Exception as error:
        return f"{_PACKAGE} cannot load this tokenizer ({error})."
    texts = probes(spec.tokenizer_json)
    exact = Encoder(replace(spec, eos_id=None, bos_id=None, dtype="uint32"))
    for text, ids, others in zip(texts, exact.encode(texts), fast(texts), strict=True):
        if not np.array_equal(ids, others):
            return f"{_PACKAGE} gives other ids than tokenizers for {text[:40]!r}."
    return len(texts)


def _fast_pieces(spec: EncodingSpec) -> Callable[[list[str]], list[np.ndarray]]:
    tokenizer: Any = import_module(_PACKAGE).Tokenizer.from_json_str(_without_limits(spec.tokenizer_json))
    as_text = spec.special_tokens == "text"

    def pieces(texts: list[str]) -> list[np.ndarray]:
        ids, offsets = tokenizer.encode_batch_flat(
            texts, add_special_tokens=False, split_special_tokens=as_text
        )
        flat = np.frombuffer(ids, "<u4")
        return [flat[begin:end] for begin, end in pairwise(np.frombuffer(offsets, "<u8").tolist())]

    return pieces


def _without_limits(tokenizer_json: str) -> str:
    parts = json.loads(tokenizer_json)
    return json.dumps({**parts, "truncation": None, "padding": None}, ensure_ascii=False)


def _added_texts(tokenizer_json: str) -> re.Pattern[str] | None:
    # White space has tokens of its own in GPT-NeoX, which half of all documents hold: the probes have it.
    added = Tokenizer.from_str(tokenizer_json).get_added_tokens_decoder().values()
    texts = sorted({token.content for token in added if token.content.strip()}, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None
