"""A finding: how it is provoked, what came of it then, and what comes of it now."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from patch_algorithm.data.conversion import Conversion, Report, convert
from patch_algorithm.data.corpus.tokenizer import train_tokenizer

__all__ = ["FINDINGS", "Finding", "Now", "Place", "as_lines", "finding", "refusal", "some_texts"]

_WORDS = "the of model tokens data house water naïve 日本 12 end. {x} row patch long short seven".split()


class Now(NamedTuple):
    """What comes of it now, in words, and whether that is right."""

    told: str
    right: bool


@dataclass(frozen=True)
class Place:
    """Where a finding is provoked.

    Attributes:
        folder: An empty folder.
        tokenizer: A byte-level tokenizer of a few merges.
    """

    folder: Path
    tokenizer: Path

    def write(self, name: str, documents: Iterable[Any]) -> Path:
        """Writes documents as JSON lines."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_lines(documents))
        return path

    def convert(self, *sources: Any, out: str = "out", **options: Any) -> Report:
        """Converts in this process, cut so that little text makes several blocks and units."""
        asked: dict[str, Any] = {
            "tokenizer": str(self.tokenizer),
            "row_tokens": 32,
            "val_row_tokens": 16,
            "workers": 0,
            "block_bytes": 1 << 14,
            "unit_bytes": 1 << 16,
            "shard_bytes": 1 << 16,
            "progress": False,
        }
        named = tuple(str(source) if isinstance(source, Path) else source for source in sources)
        return convert(Conversion(sources=named, out=str(self.folder / out), **(asked | options)))


@dataclass(frozen=True)
class Finding:
    """A finding.

    Attributes:
        number: Of the list of findings.
        case: What is provoked.
        before: What came of it when it was found.
        test: The test that holds it, ``file::name``.
        provoke: Provokes it.
    """

    number: str
    case: str
    before: str
    test: str
    provoke: Callable[[Place], Now]


FINDINGS: list[Finding] = []
"""All of them, in the order of the list."""


def finding(
    number: str, case: str, before: str, test: str
) -> Callable[[Callable[[Place], Now]], Callable[[Place], Now]]:
    """Registers what provokes a finding."""

    def register(provoke: Callable[[Place], Now]) -> Callable[[Place], Now]:
        FINDINGS.append(Finding(number, case, before, f"tests/{test}", provoke))
        return provoke

    return register


def refusal(call: Callable[[], object], words: Sequence[str], most: int = 110) -> Now:
    """What a call is refused with, which has to hold some words."""
    try:
        call()
    except ValueError as error:
        told = re.sub(r"\S*/finding-\d+/", "", " ".join(str(error).split()))
        begin = max(0, min(told.find(word) for word in words) - 20) if all(w in told for w in words) else 0
        return Now(f"refused: ...{told[begin : begin + most]}...", all(word in told for word in words))
    return Now("not refused", False)


def some_texts(number: int, seed: int = 0) -> list[str]:
    """Texts of 30 words, no two of them the same."""
    draw = random.Random(seed)
    return [f"{seed} {index} {' '.join(draw.choices(_WORDS, k=30))}" for index in range(number)]


def as_lines(documents: Iterable[Any]) -> bytes:
    """Documents, or texts of documents, as JSON lines."""
    made = ({"text": one} if isinstance(one, str) else one for one in documents)
    return b"".join(json.dumps(one).encode() + b"\n" for one in made)


def small_tokenizer(folder: Path) -> Path:
    """Trains the tokenizer that findings are provoked with."""
    train_tokenizer(some_texts(300, seed=1), 330, folder)
    return folder
