"""Texts that show whether two engines read a tokenizer alike, made from the tokenizer itself."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

__all__ = ["probes"]

_FRAGMENTS = 2500
_CHARACTERS_AT_ONCE = 48
# Code points that nothing is assigned to, and those for private use, are a million: one in so many.
_UNASSIGNED_STEP = 512
_DENSE = 0x33000
_LONGEST_RUN = 130
_MOST_ADDED = 300
_BYTES = 256
_PLAIN = (
    "it's I'LL we’ve don't O'Neil's",
    "1 12 123 1234 12345 1,234,567.89 0x1F 1e-10",
    "def f(x):\n\treturn x[1:]  # ok\n\n\n    pass\r\n",
    "e\u0301 \u00e9 \ufb01 \uff21 \u212b \u1e9e \u0130 \u01c5",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "\u0000\u0001\u007f\u0085\u00a0\u00ad\u180e\u200b\u2028\u2029\u3000\ufeff\ufffd",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
    "",
    " ",
)


def probes(tokenizer_json: str) -> list[str]:
    """About ten thousand short texts, the same ones each time.

    Fragments of the vocabulary in pairs, decoded and as the vocabulary writes them; every added token in
    context; the names of bytes; every assigned code point among its like; and runs of white space.
    """
    draw = random.Random(0)
    return [
        *_PLAIN,
        *_pairs(Tokenizer.from_str(tokenizer_json), draw),
        *_added(json.loads(tokenizer_json).get("added_tokens") or []),
        *_bytes(),
        *_code_points(draw),
        *_white_space(),
    ]


def _pairs(tokenizer: Tokenizer, draw: random.Random) -> Iterator[str]:
    ids = sorted(tokenizer.get_vocab(with_added_tokens=False).values())
    chosen = draw.sample(ids, min(_FRAGMENTS, len(ids)))
    texts = [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in chosen]
    names = [tokenizer.id_to_token(token_id) or "" for token_id in chosen]
    for kind, between in ((texts, ""), (texts, " "), (names, "")):
        others = draw.sample(kind, len(kind))
        yield from (first + between + second for first, second in zip(kind, others, strict=True))


def _added(tokens: list[dict[str, Any]]) -> Iterator[str]:
    for token in tokens[:: -(-len(tokens) // _MOST_ADDED) or 1]:
        text = str(token["content"])
        yield from (
            text,
            f"a{text}b",
            f" {text} ",
            f"\n{text}\t{text}{text}",
            text[1:],
            text[:-1],
            f"{text}.",
        )


def _bytes() -> Iterator[str]:
    for byte in range(_BYTES):
        name = f"<0x{byte:02X}>"
        yield from (f"a{name}b", f"\n{name}", f"{name}{name.lower()}")


def _code_points(draw: random.Random) -> Iterator[str]:
    kinds: dict[str, list[str]] = {}
    # Beyond the third plane little is assigned, and walking a million code points takes a second.
    dense = chain(range(_DENSE), range(0xE0000, 0xE0200))
    for code in chain(dense, range(_DENSE, 0x110000, _UNASSIGNED_STEP)):
        kind = unicodedata.category(chr(code))
        if kind != "Cs" and (kind not in ("Cn", "Co") or code % _UNASSIGNED_STEP == 0):
            kinds.setdefault(kind, []).append(chr(code))
    for characters in kinds.values():
        for at in range(0, len(characters), _CHARACTERS_AT_ONCE):
            text = "".join(characters[at : at + _CHARACTERS_AT_ONCE])
            yield draw.choice(("", " ", "a", "\n")).join((text[: len(text) // 2], text[len(text) // 2 :]))


def _white_space() -> Iterator[str]:
    for space in (" ", "\t", "\n", "\r\n", "\u00a0", "\u3000", " \n", "\n "):
        for length in (*range(1, 34), 63, 64, 65, _LONGEST_RUN):
            yield from (space * length, f"a{space * length}b")
