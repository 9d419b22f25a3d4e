"""A unit of work: a run of whole documents of one source, from its text to its shards and its record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from patch_algorithm.data.conversion.documents import BadDocument, BlockEncoder, StreamKey, Tally, Task
from patch_algorithm.data.conversion.records import ConversionError, StreamPart, UnitRecord
from patch_algorithm.data.conversion.upload import Uploader
from patch_algorithm.data.conversion.workdir import WorkDir
from patch_algorithm.data.conversion.writing import stream_path, write_shards
from patch_algorithm.data.readers.blocks import Block, Position
from patch_algorithm.data.readers.source import Source
from patch_algorithm.data.tokens.engine import EnginesDiffer

__all__ = ["Unit", "UnitMaker", "source_key", "unit_name"]

_SMALLEST_SHARD = 16


@dataclass
class Unit:
    """The text of a unit, as it is sent to a worker.

    Attributes:
        name: See :func:`unit_name`.
        stamp: The source's stamp when it was read.
        start: Where it begins in its source.
        blocks: Its documents.
        last: Whether its source is known to end with it.
        exact: Whether ``tokenizers`` encodes it, whatever the task says.
    """

    name: str
    stamp: dict[str, Any]
    start: Position
    blocks: list[Block] = field(default_factory=list)
    last: bool = False
    exact: bool = False

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(block.size for block in self.blocks)

    @property
    def end(self) -> Position:
        """Where it ends in its source."""
        return self.blocks[-1].end

    @property
    def read_bytes(self) -> int:
        """Bytes of the file that were read for it."""
        return sum(block.read_bytes for block in self.blocks)

    def digest(self) -> str:
        """A hash of its text."""
        return hashlib.sha256(b"".join(block.digest() for block in self.blocks)).hexdigest()


def source_key(source: Source) -> str:
    """What the names of a source's units begin with: its own name alone decides, not those beside it."""
    return hashlib.sha256(source.name.encode(errors="surrogateescape")).hexdigest()[:12]


def unit_name(key: str, number: int) -> str:
    """The name of unit ``number`` of the source with this key, and of the folders of its shards."""
    return f"{key}-{number:06d}"


class UnitMaker:
    """Makes units, one after the other.

    A stream's rows become shards of the unit. Those of a shard that would hold less than a sixteenth of
    ``shard_bytes`` go to the tail, with the tokens that fill no row. Every shard of a unit therefore holds
    at least that much: a stream of ``n`` bytes has at most ``16 n / shard_bytes`` of them, however many
    components share the text.

    Args:
        task: What is done.
        workdir: Where the shards, the tail and the record go.
        stopped: Asked before each block whether to give up.
    """

    def __init__(self, task: Task, workdir: WorkDir, stopped: Callable[[], bool] = lambda: False) -> None:
        self._task = task
        self._workdir = workdir
        self._stopped = stopped
        self._encoder = BlockEncoder(task)
        self._differed = False

    def make(self, unit: Unit) -> UnitRecord | BadDocument:
        """Encodes a unit, writes its shards, uploads them where that is asked for, and makes it final.

        Returns:
            Its record; or the bad document that ended it, of which nothing is kept.

        Raises:
            ConversionError: If the object store does not take a shard, or the work was stopped.
        """
        self._workdir.clear(unit.name)
        if unit.exact:
            self._use_tokenizers()
        tally, tokens = Tally(), dict[StreamKey, list[np.ndarray]]()
        try:
            error = self._encode(unit, tally, tokens)
        except EnginesDiffer:
            # What this engine made of the unit before is not to be trusted either.
            self._use_tokenizers()
            tally, tokens = Tally(differed=1), {}
            error = self._encode(unit, tally, tokens)
        if error is not None:
            return error
        parts, tails = [], []
        for stream in sorted(tokens, key=lambda stream: (stream[0] or "", stream[1])):
            part, tail = self._write(unit.name, stream, np.concatenate(tokens.pop(stream)))
            parts.append(part)
            tails.append(tail)
        files = [file for part in parts for file in part.files()]
        if self._task.url is not None:
            uploader = Uploader(self._workdir.data, self._task.url)
            for file, _ in files:
                uploader.upload(file)
        record = UnitRecord(
            unit.start,
            unit.end,
            unit.last,
            unit.stamp,
            unit.digest(),
            unit.read_bytes,
            self._task.url is not None,
            parts,
            tally,
        )
        self._workdir.commit(unit.name, record, tails)
        for file, _ in files if record.uploaded else ():
            (self._workdir.data / file).unlink()
        return record

    def _use_tokenizers(self) -> None:
        if not self._differed:
            encoding = replace(self._task.encoding, engine="tokenizers")
            self._encoder = BlockEncoder(replace(self._task, encoding=encoding))
            self._differed = True

    def _encode(
        self, unit: Unit, tally: Tally, tokens: dict[StreamKey, list[np.ndarray]]
    ) -> BadDocument | None:
        for block in unit.blocks:
            if self._stopped():
                raise ConversionError("stopped")
            result = self._encoder.encode(block)
            if result.error is not None:
                return result.error
            tally.add(result.tally)
            for stream, ids in result.tokens.items():
                tokens.setdefault(stream, []).append(ids)
        return None

    def _write(self, name: str, stream: StreamKey, ids: np.ndarray) -> tuple[StreamPart, np.ndarray]:
        component, split = stream
        form = self._task.formats[split]
        folder = self._workdir.data / stream_path(component, split)
        shards = write_shards([ids], len(ids), folder, name, form, form.shard_bytes // _SMALLEST_SHARD)
        tail = ids[sum(shard["samples"] for shard in shards) * form.row_tokens :]
        return StreamPart(component, split, shards, len(tail)), tail
