"""From a block of a source to the tokens of its documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from patch_algorithm.data.conversion.writing import UNLABELLED, RowFormat
from patch_algorithm.data.readers.blocks import Block, Lost, Row
from patch_algorithm.data.readers.fields import component_of, look_up, parse_json
from patch_algorithm.data.tokens.encoding import EncodingSpec, UncuttableText
from patch_algorithm.data.tokens.engine import make_encoder

__all__ = [
    "EXAMPLES",
    "TRAIN",
    "VAL",
    "BadDocument",
    "BlockEncoder",
    "BlockResult",
    "Counts",
    "StreamKey",
    "Tally",
    "Task",
    "held_out",
]

EXAMPLES = 10
"""How many bad documents of a unit are reported one by one; the others are only counted."""
TRAIN, VAL = "train", "val"

StreamKey = tuple[str | None, str]
"""A component, or ``None`` where all share a stream, and a split."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadDocument(NamedTuple):
    """A document that cannot be converted.

    Attributes:
        number: Its line or row, counted from 1.
        reason: In a few words, as it is counted.
        detail: What exactly; may be empty.
    """

    number: int
    reason: str
    detail: str


class Counts(NamedTuple):
    """Documents, the bytes of their UTF-8, and their tokens, BOS and EOS among them."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    def plus(self, other: Counts) -> Counts:
        """The sum of both."""
        return Counts(*(mine + others for mine, others in zip(self, other, strict=True)))


@dataclass
class Tally:
    """What was read: of a block, a unit or a conversion.

    Attributes:
        counts: By (component, split).
        skipped: Bad documents, and sources that broke off, by reason.
        examples: The first bad documents.
        checked: Documents that were encoded by both engines.
        differed: Units in which they differed, which were encoded again by ``tokenizers``.
    """

    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[BadDocument] = field(default_factory=list)
    checked: int = 0
    differed: int = 0

    def count(self, component: str, split: str, counts: Counts) -> None:
        """Adds to the counts of a component."""
        self.counts[component, split] = self.counts.get((component, split), Counts()).plus(counts)

    def skip(self, reason: str, number: int = 1) -> None:
        """Counts what was left out."""
        self.skipped[reason] = self.skipped.get(reason, 0) + number

    def add(self, other: Tally) -> None:
        """Adds what was read after this."""
        for (component, split), counts in other.counts.items():
            self.count(component, split, counts)
        for reason, number in other.skipped.items():
            self.skip(reason, number)
        self.examples = [*self.examples, *other.examples][:EXAMPLES]
        self.checked += other.checked
        self.differed += other.differed

    @property
    def total(self) -> Counts:
        """Over all components and splits."""
        total = Counts()
        for counts in self.counts.values():
            total = total.plus(counts)
        return total


@dataclass(frozen=True)
class Task:
    """What is done with every block and every unit; it can be pickled.

    Attributes:
        encoding: The tokenizer.
        text_field: The field of a line that holds the text.
        val_fraction: The share of documents, by hash, that is held out for evaluation.
        by_component: Whether each component gets a stream of its own.
        stop: Whether a bad document ends the work, rather than being left out and counted.
        longest_line: What is said of lines that were too long, in bytes.
        component_field: The field of a line that names its component; ``None`` tries those that are known.
        formats: How rows are written, by split.
        url: Where shards are uploaded; ``None`` keeps them.
    """

    encoding: EncodingSpec
    text_field: str
    val_fraction: float
    by_component: bool
    stop: bool
    longest_line: int
    component_field: str | None
    formats: Mapping[str, RowFormat]
    url: str | None = None


class _Document(NamedTuple):
    number: int
    text: str
    bytes: int
    component: str
    split: str


@dataclass
class BlockResult:
    """What has come of a block.

    Attributes:
        tally: What was read.
        tokens: The documents' tokens in order ``[n]``, by stream.
        error: The bad document that ended it, if one did; then the rest is not complete.
    """

    tally: Tally = field(default_factory=Tally)
    tokens: dict[StreamKey, np.ndarray] = field(default_factory=dict)
    error: BadDocument | None = None


def held_out(utf8: bytes, fraction: float) -> bool:
    """Whether a document is held out, by its text alone, so that neither order nor number matters."""
    return fraction > 0 and int.from_bytes(hashlib.sha256(utf8).digest()[:8], "big") < fraction * 2**64


class BlockEncoder:
    """Parses and encodes blocks, one after the other.

    Args:
        task: What is done.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._encoder = make_encoder(task.encoding)

    def encode(self, block: Block) -> BlockResult:
        """Parses the documents of a block and encodes them.

        Raises:
            EnginesDiffer: If the engine gives a document other ids than ``tokenizers``.
        """
        result, checked = BlockResult(), self._encoder.checked
        documents: list[_Document] = []
        for document in self._documents(block):
            if isinstance(document, _Document):
                documents.append(document._replace(split=block.split or document.split))
            elif not self._goes_on(result, document):
                break
        while documents:
            try:
                ids = self._encoder.encode([document.text for document in documents])
            except UncuttableText as error:
                culprit = documents.pop(error.index)
                bad = BadDocument(culprit.number, "text without a place to cut", str(error))
                if not self._goes_on(result, bad):
                    break
                continue
            self._collect(result, documents, ids)
            result.tally.checked = self._encoder.checked - checked
            break
        return result

    def _goes_on(self, result: BlockResult, bad: BadDocument) -> bool:
        if self._task.stop:
            # A text that cannot be cut is found after the others have been parsed.
            if result.error is None or bad.number < result.error.number:
                result.error = bad
            return False
        result.tally.skip(bad.reason)
        result.tally.examples = sorted([*result.tally.examples, bad])[:EXAMPLES]
        return True

    def _collect(self, result: BlockResult, documents: list[_Document], ids: list[np.ndarray]) -> None:
        parts: dict[StreamKey, list[np.ndarray]] = {}
        for document, own in zip(documents, ids, strict=True):
            result.tally.count(document.component, document.split, Counts(1, document.bytes, len(own)))
            component = document.component if self._task.by_component else None
            parts.setdefault((component, document.split), []).append(own)
        result.tokens = {stream: np.concatenate(arrays) for stream, arrays in parts.items()}

    def _documents(self, block: Block) -> Iterator[_Document | BadDocument]:
        if isinstance(block.data, bytes):
            yield from self._lines(block, block.data)
            return
        for number, row in enumerate(block.data, block.start.number + 1):
            yield self._row(number, row)

    def _lines(self, block: Block, data: bytes) -> Iterator[_Document | BadDocument]:
        begin, index = 0, 0
        if block.start.offset == 0 and data.startswith(_BYTE_ORDER_MARK):
            begin = len(_BYTE_ORDER_MARK)
        while begin < len(data):
            end = data.find(b"\n", begin)
            end = len(data) if end < 0 else end
            line = data[begin:end]
            number = block.start.number + index + 1
            if index in block.overlong:
                limit = f"more than {self._task.longest_line:,} bytes"
                yield BadDocument(number, "line too long", limit)
            elif line and not line.isspace():
                yield self._line(number, line)
            begin, index = end + 1, index + 1

    def _line(self, number: int, line: bytes) -> _Document | BadDocument:
        try:
            value = parse_json(line)
        except UnicodeDecodeError as error:
            detail = f"byte {error.start + 1} of the line: {error.reason}"
            return BadDocument(number, "broken UTF-8", detail)
        # The parser gives up with a ValueError on numbers of thousands of digits.
        except ValueError as error:
            return BadDocument(number, "not JSON", str(error))
        if not isinstance(value, dict):
            return BadDocument(number, "not an object", f"a JSON {type(value).__name__}")
        component = component_of(value, self._task.component_field)
        return self._row(number, Row(look_up(value, self._task.text_field), component))

    def _row(self, number: int, row: Row) -> _Document | BadDocument:
        text = row.text
        if isinstance(text, Lost):
            return BadDocument(number, "damaged row", text.detail)
        if text is None:
            return BadDocument(number, "without text", f"no {self._task.text_field!r}")
        try:
            if isinstance(text, bytes):
                utf8, text = text, text.decode()
            elif isinstance(text, str):
                utf8 = text.encode()
            else:
                return BadDocument(number, "text not a string", f"a {type(text).__name__}")
        except UnicodeDecodeError as error:
            return BadDocument(number, "broken UTF-8", f"byte {error.start + 1} of the text: {error.reason}")
        except UnicodeEncodeError as error:
            return BadDocument(number, "lone surrogate", f"character {error.start + 1} of the text")
        split = VAL if held_out(utf8, self._task.val_fraction) else TRAIN
        return _Document(number, text, len(utf8), _label(row.component), split)


def _label(component: object) -> str:
    if not isinstance(component, str) or not component.strip():
        return UNLABELLED
    # A name, not text: what cannot be written in UTF-8 is replaced.
    return component.encode(errors="replace").decode()
