"""All units of all sources: which are finished, which are to be made, and the making of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from patch_algorithm.common.progress_bar import progress_bar
from patch_algorithm.data.conversion.documents import BadDocument, Counts
from patch_algorithm.data.conversion.engines import Engine, WorkerDied
from patch_algorithm.data.conversion.records import ConversionError, UnitRecord
from patch_algorithm.data.conversion.units import Unit, source_key, unit_name
from patch_algorithm.data.conversion.workdir import WorkDir
from patch_algorithm.data.readers.blocks import Block, Position, SourceDamage
from patch_algorithm.data.readers.source import Reading, Source, total_size

__all__ = ["Work"]

log = logging.getLogger(__name__)

_MOST_WARNINGS = 10


class _SourceStopped(ConversionError):
    # A source that ends the work when what is under way is finished.
    pass


class _UnderWay(NamedTuple):
    # Source and number of a unit, so that the first failure is the least.
    order: tuple[int, int]
    stamp: dict[str, Any]
    read_bytes: int


class Work:
    """Makes every unit that is not finished.

    A unit is a run of whole blocks of one source, the fewest that make up ``unit_bytes`` of text.

    Args:
        sources: The sources in order.
        workdir: Where units are kept.
        reading: How sources are read.
        unit_bytes: Text of a unit, in bytes.
        stop: Whether the first bad document ends the work, rather than being left out and counted.
        start_engine: Starts the engine; called when there is work for it.
        shown: Whether a progress bar is shown.

    Attributes:
        units: The units of each source in order, and why it could not be read to its end, if it could not.
        encoded: What was encoded, which is less than there is where earlier work is continued.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        workdir: WorkDir,
        reading: Reading,
        unit_bytes: int,
        stop: bool,
        start_engine: Callable[[], Engine],
        shown: bool,
    ) -> None:
        self.units: list[tuple[list[str], SourceDamage | None]] = []
        self.encoded = Counts()
        self._sources = sources
        self._workdir = workdir
        self._reading = reading
        self._unit_bytes = unit_bytes
        self._stop = stop
        self._start_engine = start_engine
        self._bar = progress_bar("converting", total_size(sources), "B", shown)
        self._started = time.monotonic()
        self._records = workdir.records()
        self._differed = any(record.tally.differed for record in self._records.values())
        self._under_way: dict[Future[Any], _UnderWay] = {}
        self._failures: list[tuple[_UnderWay, BadDocument]] = []
        self._warned = 0

    def run(self) -> None:
        """Does the work.

        Raises:
            ConversionError: At the first bad document, in the order of the sources, whatever the number
                of workers; at a source that cannot be read or changes meanwhile; or where the workers
                have died. All units that are finished are kept.
        """
        damage = None
        with ExitStack() as stack:
            stack.enter_context(self._bar)
            engine: Engine | None = None
            try:
                for order, unit in self._unfinished():
                    engine = engine or stack.enter_context(self._start_engine())
                    while len(self._under_way) >= engine.slots:
                        self._collect(engine)
                    if self._failures:
                        break
                    unit.exact = self._differed
                    future = engine.submit(unit)
                    self._under_way[future] = _UnderWay(order, unit.stamp, unit.read_bytes)
            except _SourceStopped as error:
                damage = error
            # What is under way comes before what failed, or is finished anyway.
            while engine is not None and self._under_way:
                self._collect(engine)
        if self._failures:
            raise ConversionError(self._first_failure())
        if damage is not None:
            raise damage

    def _unfinished(self) -> Iterator[tuple[tuple[int, int], Unit]]:
        for index, source in enumerate(self._sources):
            yield from self._source_units(index, source)

    def _source_units(self, index: int, source: Source) -> Iterator[tuple[tuple[int, int], Unit]]:
        key, stamp = source_key(source), self._stamp(source)
        place, number, last = Position(), 0, False
        damage: SourceDamage | None = None
        while not last and damage is None:
            while (record := self._known(key, number, stamp, place)) and not last:
                self._found(record.read_bytes)
                place, number, last = record.end, number + 1, record.last
            units = self._cut(source, key, stamp, place, number)
            try:
                while not last and not self._known(key, number, stamp, place):
                    if (unit := next(units, None)) is None:
                        last = True
                        break
                    if not self._is_kept(unit):
                        yield (index, number), unit
                    place, number, last = unit.end, number + 1, unit.last
            except SourceDamage as error:
                damage = error
            units.close()
        self._end_source(source, stamp, [unit_name(key, unit) for unit in range(number)], damage)

    def _record(self, name: str) -> UnitRecord | None:
        record = self._records.get(name)
        # What was skipped over before has to stop the work now.
        return None if record is None or (self._stop and record.tally.skipped) else record

    def _known(self, key: str, number: int, stamp: dict[str, Any], place: Position) -> UnitRecord | None:
        record = self._record(unit_name(key, number))
        return record if record and (record.stamp, record.start) == (stamp, place) else None

    def _cut(
        self, source: Source, key: str, stamp: dict[str, Any], place: Position, number: int
    ) -> Generator[Unit, None, None]:
        unit, size = Unit(unit_name(key, number), stamp, place), 0
        blocks, damage = source.blocks(place, self._reading), None
        block: Block | None = None
        while damage is None:
            try:
                with self._read_errors_explained(source):
                    block = next(blocks, None)
            except SourceDamage as error:
                block, damage = None, error
            if block is not None:
                unit.blocks.append(block)
                size += block.size
            if unit.blocks and (block is None or size >= self._unit_bytes):
                unit.last = block is None and damage is None
                yield unit
                number += 1
                unit, size = Unit(unit_name(key, number), stamp, unit.end), 0
            if block is None and damage is None:
                return
        raise damage

    def _is_kept(self, unit: Unit) -> bool:
        # The source's stamp has changed since, perhaps its content elsewhere.
        record = self._record(unit.name)
        if record is None or (record.start, record.end) != (unit.start, unit.end):
            return False
        if record.digest != unit.digest():
            return False
        kept = replace(record, stamp=unit.stamp, read_bytes=unit.read_bytes, last=unit.last)
        self._workdir.commit_record(unit.name, kept)
        self._found(unit.read_bytes)
        return True

    def _end_source(
        self, source: Source, stamp: dict[str, Any], units: list[str], damage: SourceDamage | None
    ) -> None:
        if self._stamp(source) != stamp:
            raise _SourceStopped(self._changed(source))
        if not units and damage is None:
            damage = SourceDamage("empty file", "it holds no documents")
        if damage is not None:
            told = f"{source.name}: {damage.reason} ({damage.detail})"
            if self._stop:
                raise _SourceStopped(self._kept(told))
            self._warn(told)
        self.units.append((units, damage))

    def _found(self, read_bytes: int) -> None:
        # What an earlier run has done says nothing about the speed of this one.
        if not self._bar.disable:
            self._bar.initial += read_bytes
        self._bar.update(read_bytes)

    def _collect(self, engine: Engine) -> None:
        done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        for future in done:
            under_way = self._under_way.pop(future)
            try:
                made = engine.result(future)
            except WorkerDied as error:
                raise ConversionError(
                    f"a worker has died, perhaps out of memory ({error}). Finished work is kept: "
                    "repeat the command to continue, with fewer --workers if memory is short."
                ) from error
            if isinstance(made, BadDocument):
                self._failures.append((under_way, made))
                continue
            self._note_difference(made)
            self._count(under_way.read_bytes, made.tally.total)
            for bad in made.tally.examples:
                self._warn(self._named(under_way.order[0], bad))

    def _note_difference(self, made: UnitRecord) -> None:
        if made.tally.differed and not self._differed:
            self._differed = True
            log.warning(
                "the engines gave a document different ids: its unit was encoded again by tokenizers, which "
                "also encodes the rest"
            )

    def _count(self, read_bytes: int, counts: Counts) -> None:
        self.encoded = self.encoded.plus(counts)
        seconds = max(1e-6, time.monotonic() - self._started)
        self._bar.set_postfix_str(
            f"{self.encoded.bytes / seconds / 1e6:.1f} MB text/s, "
            f"{self.encoded.tokens / seconds / 1e6:.2f} M tokens/s, {self.encoded.documents:,} documents",
            refresh=False,
        )
        self._bar.update(read_bytes)

    @contextmanager
    def _read_errors_explained(self, source: Source) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _SourceStopped(
                f"{source.name} cannot be read: {error}. Finished work is kept in {self._workdir.root}: "
                "repeat the command to continue."
            ) from error

    def _stamp(self, source: Source) -> dict[str, Any]:
        with self._read_errors_explained(source):
            return source.stamp()

    def _first_failure(self) -> str:
        under_way, bad = min(self._failures, key=lambda failure: failure[0].order)
        source = self._sources[under_way.order[0]]
        if self._stamp(source) != under_way.stamp:
            return self._changed(source)
        return self._kept(self._named(under_way.order[0], bad))

    def _changed(self, source: Source) -> str:
        return (
            f"{source.name} changed while it was read. Wait until nothing writes to it, then repeat the "
            f"command: units whose text is still the same are kept in {self._workdir.root}."
        )

    def _warn(self, text: str) -> None:
        self._warned += 1
        if self._warned <= _MOST_WARNINGS:
            log.warning("skipped %s", text)
        if self._warned == _MOST_WARNINGS:
            log.warning("further skipped documents are only counted")

    def _named(self, source: int, bad: BadDocument) -> str:
        named = f"{self._sources[source].name}, {self._sources[source].place} {bad.number}: {bad.reason}"
        return f"{named} ({bad.detail})" if bad.detail else named

    def _kept(self, what: str) -> str:
        return (
            f"{what}. Finished work is kept in {self._workdir.root}: fix the source, or add --on-error "
            "skip to skip and count such documents, and repeat the command to continue."
        )
