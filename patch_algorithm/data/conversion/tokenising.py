"""The first phase of a conversion: sources are cut into units, whose tokens are kept in the work folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from patch_algorithm.data.conversion.documents import EXAMPLES, BadDocument, BlockResult, Counts
from patch_algorithm.data.conversion.engines import Engine, WorkerDied
from patch_algorithm.data.conversion.progress import TokenisingBar
from patch_algorithm.data.conversion.workdir import ConversionError, SourceEnd, TokenRun, UnitRecord, WorkDir
from patch_algorithm.data.readers.blocks import Block, Position, SourceDamage
from patch_algorithm.data.readers.source import Reading, Source

__all__ = ["Tokenising"]

log = logging.getLogger(__name__)

_MOST_WARNINGS = 10


@dataclass
class _Unit:
    # A unit on its way: the results of its blocks come in any order.
    source: int
    number: int
    stamp: dict[str, Any]
    start: Position
    end: Position
    size: int = 0
    closed: bool = False
    read_bytes: list[int] = field(default_factory=list)
    results: list[BlockResult | None] = field(default_factory=list)

    def add(self, block: Block) -> int:
        self.end = block.end
        self.size += block.size
        self.read_bytes.append(block.read_bytes)
        self.results.append(None)
        return len(self.results) - 1

    def finished(self) -> list[BlockResult] | None:
        results = [result for result in self.results if result is not None and result.error is None]
        return results if self.closed and len(results) == len(self.results) else None


_Work = tuple[_Unit, int, Block]


class Tokenising:
    """Encodes every unit that is not finished.

    A unit is a run of whole blocks of one source, the fewest that make up ``unit_bytes`` of text.

    Args:
        sources: The sources in order.
        workdir: Where units are kept.
        reading: How sources are read.
        unit_bytes: Text of a unit, in bytes.
        stop: Whether the first bad document ends the work, rather than being left out and counted.
        start_engine: Starts the engine; called when there is work for it.
        bar: Is told of everything that is done.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        workdir: WorkDir,
        reading: Reading,
        unit_bytes: int,
        stop: bool,
        start_engine: Callable[[], Engine],
        bar: TokenisingBar,
    ) -> None:
        self._sources = sources
        self._workdir = workdir
        self._reading = reading
        self._unit_bytes = unit_bytes
        self._stop = stop
        self._start_engine = start_engine
        self._bar = bar
        self._failures: list[tuple[tuple[int, int, int], BadDocument]] = []
        self._under_way: dict[Future[BlockResult], tuple[Engine, _Unit, int]] = {}
        self._warned = 0
        self._changed = False

    def run(self) -> None:
        """Does the work.

        Raises:
            ConversionError: At the first bad document, in the order of the sources, whatever the number
                of workers; at a source that cannot be read; or where the workers have died. All units
                that are finished are kept.
        """
        damage = None
        with ExitStack() as stack:
            engine: Engine | None = None
            try:
                for unit, index, block in self._work():
                    engine = engine or stack.enter_context(self._start_engine())
                    while len(self._under_way) >= engine.slots:
                        self._collect()
                    if self._failures:
                        break
                    self._under_way[engine.submit(block)] = (engine, unit, index)
            except ConversionError as error:
                damage = error
            # What is under way stands before what failed, or is finished anyway.
            while self._under_way:
                self._collect()
        if self._failures:
            raise self._failure()
        if damage is not None:
            raise damage

    def _work(self) -> Iterator[_Work]:
        for index, source in enumerate(self._sources):
            yield from self._source_work(index, source)

    def _source_work(self, index: int, source: Source) -> Iterator[_Work]:
        try:
            stamp = source.stamp()
        except OSError as error:
            raise self._unreadable(source, error) from error
        records = self._workdir.records(index)
        end = self._workdir.end(index)
        if end is not None and self._is_finished(end, records, stamp):
            for number in range(end.units):
                self._bar.found(records[number].read_bytes)
            return
        place, number, damage, at_end = Position(), 0, None, False
        while not at_end:
            while (record := records.get(number)) and self._is_known(record, stamp, place):
                self._bar.found(record.read_bytes)
                place, number = record.end, number + 1
            fresh = _Unit(index, number, stamp, place, place)
            place, number, damage, at_end = yield from self._read_units(source, fresh, records)
        if not number and damage is None:
            damage = SourceDamage("empty file", "it holds no documents")
        self._end_source(index, source, number, stamp, damage)

    def _is_finished(self, end: SourceEnd, records: dict[int, UnitRecord], stamp: dict[str, Any]) -> bool:
        return (
            end.stamp == stamp
            and not (self._stop and end.reason)
            and all(
                number in records and records[number].stamp == stamp and self._is_settled(records[number])
                for number in range(end.units)
            )
        )

    def _is_settled(self, record: UnitRecord) -> bool:
        # What was skipped over before has to stop the work now.
        return not (self._stop and record.skipped)

    def _is_known(self, record: UnitRecord, stamp: dict[str, Any], place: Position) -> bool:
        return record.stamp == stamp and record.start == place and self._is_settled(record)

    def _read_units(
        self, source: Source, unit: _Unit, records: dict[int, UnitRecord]
    ) -> Generator[_Work, None, tuple[Position, int, SourceDamage | None, bool]]:
        # Up to the next unit that is known to be finished, or the end of the source.
        damage = None
        suspect: UnitRecord | None = None
        held: list[Block] = []
        blocks = self._blocks(source, unit.start)
        while True:
            try:
                block = next(blocks, None)
            except SourceDamage as error:
                block, damage = None, error
            if block is None:
                break
            if not unit.results:
                suspect, held = records.get(unit.number), []
                if suspect is not None and self._is_known(suspect, unit.stamp, unit.start):
                    blocks.close()
                    return unit.start, unit.number, None, False
            index = unit.add(block)
            full = unit.size >= self._unit_bytes
            if suspect is None:
                unit.closed = full
                yield unit, index, block
            else:
                held.append(block)
                if full:
                    yield from self._compare(unit, held, suspect)
            if full:
                unit = _Unit(unit.source, unit.number + 1, unit.stamp, unit.end, unit.end)
        if not unit.results:
            return unit.start, unit.number, damage, True
        if suspect is not None:
            yield from self._compare(unit, held, suspect)
        else:
            unit.closed = True
            self._commit_if_finished(unit)
        return unit.end, unit.number + 1, damage, True

    def _blocks(self, source: Source, start: Position) -> Generator[Block, None, None]:
        try:
            yield from source.blocks(start, self._reading)
        except OSError as error:
            raise self._unreadable(source, error) from error

    def _compare(self, unit: _Unit, blocks: list[Block], record: UnitRecord) -> Iterator[_Work]:
        # The source has changed since, perhaps elsewhere.
        unit.closed = True
        digest = _digest(block.digest() for block in blocks)
        same = (record.start, record.end, record.digest) == (unit.start, unit.end, digest)
        if same and self._is_settled(record):
            self._bar.found(sum(unit.read_bytes))
            kept = replace(record, stamp=unit.stamp, read_bytes=sum(unit.read_bytes))
            self._workdir.commit_record(unit.source, unit.number, kept)
            return
        for index, block in enumerate(blocks):
            yield unit, index, block

    def _end_source(
        self, index: int, source: Source, units: int, stamp: dict[str, Any], damage: SourceDamage | None
    ) -> None:
        if damage is not None:
            if self._stop:
                raise ConversionError(self._told(f"{source.name}: {damage.reason} ({damage.detail})"))
            self._warn(f"{source.name}: {damage.reason} ({damage.detail})")
        self._note_change()
        end = SourceEnd(units, stamp)
        if damage is not None:
            end = SourceEnd(units, stamp, damage.reason, damage.detail, damage.documents)
        self._workdir.commit_end(index, end)

    def _collect(self) -> None:
        done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        for future in done:
            engine, unit, index = self._under_way.pop(future)
            try:
                result = engine.result(future)
            except WorkerDied as error:
                raise ConversionError(
                    f"a worker has died, perhaps for want of memory ({error}). What is finished is kept: "
                    "repeat the command to continue, with fewer --workers if memory is short."
                ) from error
            unit.results[index] = result
            if result.error is not None:
                self._failures.append(((unit.source, unit.number, index), result.error))
                continue
            total = Counts()
            for counts in result.counts.values():
                total = total.plus(counts)
            self._bar.add(unit.read_bytes[index], total)
            for bad in result.examples:
                self._warn(self._named(unit.source, bad))
            self._commit_if_finished(unit)

    def _commit_if_finished(self, unit: _Unit) -> None:
        results = unit.finished()
        if results is None:
            return
        self._note_change()
        digest = _digest(result.digest for result in results)
        record = UnitRecord(unit.start, unit.end, unit.stamp, digest, sum(unit.read_bytes))
        for result in results:
            for key, counts in result.counts.items():
                record.counts[key] = record.counts.get(key, Counts()).plus(counts)
            for reason, number in result.skipped.items():
                record.skipped[reason] = record.skipped.get(reason, 0) + number
        record.examples.extend(sorted(bad for result in results for bad in result.examples)[:EXAMPLES])
        tokens = _by_stream(results, record.runs)
        self._workdir.commit(unit.source, unit.number, record, tokens)
        unit.results.clear()

    def _note_change(self) -> None:
        if not self._changed:
            self._workdir.drop_data()
            self._changed = True

    def _warn(self, text: str) -> None:
        self._warned += 1
        if self._warned <= _MOST_WARNINGS:
            log.warning("skipped %s", text)
        if self._warned == _MOST_WARNINGS:
            log.warning("further skipped documents are only counted")

    def _failure(self) -> ConversionError:
        (source, _, _), bad = min(self._failures)
        return ConversionError(self._told(self._named(source, bad)))

    def _named(self, source: int, bad: BadDocument) -> str:
        named = f"{self._sources[source].name}, {self._sources[source].place} {bad.number}: {bad.reason}"
        return f"{named} ({bad.detail})" if bad.detail else named

    def _told(self, what: str) -> str:
        return (
            f"{what}. What is finished is kept in {self._workdir.root}: mend the source, or add --on-error "
            "skip to leave such things out and count them, and repeat the command to continue."
        )

    def _unreadable(self, source: Source, error: OSError) -> ConversionError:
        return ConversionError(
            f"{source.name} cannot be read: {error}. What is finished is kept in {self._workdir.root}: "
            "repeat the command to continue."
        )


def _digest(digests: Iterator[bytes]) -> str:
    whole = hashlib.sha256()
    for digest in digests:
        whole.update(digest)
    return whole.hexdigest()


def _by_stream(results: Sequence[BlockResult], runs: list[TokenRun]) -> list[np.ndarray]:
    # Stream by stream, each in the order of the documents: packing then reads long runs.
    streams = {stream for result in results for stream in result.tokens}
    tokens: list[np.ndarray] = []
    start = 0
    for stream in sorted(streams, key=lambda stream: (stream[0] or "", stream[1])):
        own = [result.tokens[stream] for result in results if stream in result.tokens]
        length = sum(map(len, own))
        runs.append(TokenRun(*stream, start, length))
        tokens += own
        start += length
    return tokens
