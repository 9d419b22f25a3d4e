"""The second phase of a conversion: the tokens of all units become the rows of a dataset."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from patch_algorithm.data.conversion.documents import EXAMPLES, BadDocument, Counts
from patch_algorithm.data.conversion.packing import (
    Piece,
    ShardPlan,
    StreamPlan,
    finish_stream,
    write_shard,
)
from patch_algorithm.data.conversion.progress import shards_bar
from patch_algorithm.data.conversion.upload import Uploader
from patch_algorithm.data.conversion.workdir import ConversionError, WorkDir
from patch_algorithm.data.dataset.description import INDEX

__all__ = ["Assembly", "Totals", "component_folder", "stream_path", "total_up"]

TOKENIZER = "tokenizer"

_StreamKey = tuple[str | None, str]


@dataclass
class Totals:
    """What all units hold.

    Attributes:
        counts: By (component, split).
        pieces: The tokens of each stream, by (component or ``None``, split), in order.
        skipped: Bad documents, and sources that broke off, by reason.
        examples: The first of the documents, with their sources.
    """

    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    pieces: dict[_StreamKey, list[Piece]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[str, BadDocument]] = field(default_factory=list)

    def add_counts(self, counts: dict[tuple[str, str], Counts], skipped: dict[str, int]) -> None:
        """Adds those of a unit."""
        for key, values in counts.items():
            self.counts[key] = self.counts.get(key, Counts()).plus(values)
        for reason, number in skipped.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + number


def total_up(workdir: WorkDir, sources: Sequence[str]) -> Totals:
    """Adds up the units of all sources, which are finished.

    Raises:
        ConversionError: If one is not, because something else has removed files.
    """
    totals = Totals()
    for source, name in enumerate(sources):
        end, records = workdir.end(source), workdir.records(source)
        if end is None or not set(range(end.units)) <= set(records):
            raise ConversionError(f"units of {name} have vanished from {workdir.root}; repeat the command.")
        for number in range(end.units):
            record = records[number]
            totals.add_counts(record.counts, record.skipped)
            totals.examples += [(name, bad) for bad in record.examples][: EXAMPLES - len(totals.examples)]
            path = str(workdir.tokens_path(source, number))
            for run in record.runs:
                pieces = totals.pieces.setdefault((run.component, run.split), [])
                pieces.append(Piece(path, run.start, run.tokens))
        if end.reason is not None:
            totals.add_counts({}, {end.reason: end.documents})
    return totals


def component_folder(component: str) -> str:
    """The folder of a component: ``Pile-CC`` is in ``pile-cc``."""
    slug = re.sub(r"[^a-z0-9]+", "-", component.lower()).strip("-")
    # Names in other scripts leave nothing to go by.
    return slug or f"component-{hashlib.sha256(component.encode()).hexdigest()[:8]}"


def stream_path(component: str | None, split: str) -> str:
    """The folder of a stream within the dataset."""
    return split if component is None else f"{component_folder(component)}/{split}"


def check_folders(components: Sequence[str]) -> None:
    """Checks that every component has a folder of its own.

    Raises:
        ConversionError: If not.
    """
    folders: dict[str, str] = {TOKENIZER: "the tokenizer"}
    for component in components:
        folder = component_folder(component)
        if folder in folders:
            raise ConversionError(
                f"--split-by-component: {component!r} and {folders[folder]!r} would share the folder "
                f"{folder!r}; rename one of them, or convert without --split-by-component."
            )
        folders[folder] = component


class Assembly:
    """Packs streams into shards, as many at a time as there are workers.

    Args:
        workdir: The work folder; the shards go to its ``data``.
        workers: How many shards are written at a time.
        url: Where shards are uploaded, and then removed here; ``None`` keeps them.
        shown: Whether a progress bar is shown.
    """

    def __init__(self, workdir: WorkDir, workers: int, url: str | None, shown: bool) -> None:
        self._workdir = workdir
        self._workers = workers
        self._shown = shown
        self._uploader = Uploader(workdir.data, url) if url else None

    def pack(self, plans: Sequence[StreamPlan]) -> None:
        """Writes the shards and indexes of all streams; those that are there already are left."""
        self._workdir.data.mkdir(exist_ok=True)
        shards = [
            plan.shard(number)
            for plan in plans
            if not (self._workdir.data / plan.path / INDEX).exists()
            for number in range(plan.shards)
        ]
        with ExitStack() as stack:
            bar = stack.enter_context(shards_bar(len(shards), self._shown))
            # Reading, hashing, compressing and writing all let other threads work.
            threads = ThreadPoolExecutor(self._workers)
            stack.callback(threads.shutdown, cancel_futures=True)
            for _ in threads.map(self._pack_shard, shards):
                bar.update()
        for plan in plans:
            finish_stream(plan, self._workdir.data)
            if plan.rows:
                self.upload(Path(plan.path) / INDEX)

    def upload(self, file: Path) -> None:
        """Uploads a file of the dataset, where it shall lie in an object store."""
        if self._uploader is not None:
            self._uploader.upload(file.as_posix())

    def _pack_shard(self, shard: ShardPlan) -> None:
        file = Path(shard.stream) / shard.filename
        marker = self._workdir.root / "uploaded" / f"{file}.done"
        if marker.exists():
            return
        write_shard(shard, self._workdir.data)
        if self._uploader is not None:
            self.upload(file)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
            (self._workdir.data / file).unlink()
