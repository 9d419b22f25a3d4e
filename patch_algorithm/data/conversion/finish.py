"""From the finished units to the dataset: the rows of the tails, the indexes, ``dataset.json``."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patch_algorithm.common.files import write_atomically
from patch_algorithm.data.conversion.documents import EXAMPLES, BadDocument, StreamKey, Tally
from patch_algorithm.data.conversion.records import ConversionError
from patch_algorithm.data.conversion.units import Task, source_key, unit_name
from patch_algorithm.data.conversion.upload import Uploader
from patch_algorithm.data.conversion.workdir import WorkDir
from patch_algorithm.data.conversion.writing import TOKENIZER, stream_path, write_shards
from patch_algorithm.data.dataset.description import INDEX, StreamInfo
from patch_algorithm.data.readers.source import Source
from patch_algorithm.data.tokens.encoding import TokenizerSpec

__all__ = ["Totals", "save_tokenizer", "total_up", "write_streams"]

_TAILS = "tails"


@dataclass
class _Stream:
    # Shards in the order of the units, with their folders; the tails of units: name, start, tokens.
    shards: list[dict[str, Any]] = field(default_factory=list)
    tails: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def tail_tokens(self) -> int:
        return sum(tokens for _, _, tokens in self.tails)


@dataclass
class Totals:
    """What all units hold.

    Attributes:
        tally: What was read.
        examples: The first bad documents with their sources.
        streams: The shards and tails of each stream.
    """

    tally: Tally = field(default_factory=Tally)
    examples: list[tuple[str, BadDocument]] = field(default_factory=list)
    streams: dict[StreamKey, _Stream] = field(default_factory=dict)


def total_up(workdir: WorkDir, sources: Sequence[Source]) -> Totals:
    """Adds up the units of all sources, which are finished.

    Raises:
        ConversionError: If one is not, because something else has removed files.
    """
    totals, records = Totals(), workdir.records()
    for source in sources:
        key = source_key(source)
        end = workdir.end(key)
        names = [unit_name(key, number) for number in range(end.units if end else 0)]
        if end is None or not set(names) <= records.keys():
            raise ConversionError(
                f"units of {source.name} have vanished from {workdir.root}; repeat the command."
            )
        for name in names:
            record, start = records[name], 0
            totals.tally.add(record.tally)
            totals.examples += [(source.name, bad) for bad in record.tally.examples]
            for part in record.parts:
                stream = totals.streams.setdefault(part.stream, _Stream())
                stream.shards += _in_folder(part.shards, name)
                stream.tails.append((name, start, part.tail))
                start += part.tail
        if end.reason is not None:
            totals.tally.skip(end.reason)
    totals.examples = totals.examples[:EXAMPLES]
    return totals


def write_streams(
    totals: Totals, workdir: WorkDir, task: Task, threads: int, uploader: Uploader | None
) -> list[StreamInfo]:
    """Writes the rows that the tails fill, in unit order, as the last shards of each stream, and its index.

    The index lists the shards of all units. (streaming's ``merge_index`` would need an index file in every
    unit's folder for that, copies them all, and does not replace the old one at once.)

    Args:
        totals: What all units hold.
        workdir: Where they are.
        task: What was done with every unit.
        threads: How many streams are written at a time.
        uploader: Uploads what is written, where the dataset lies in an object store.

    Returns:
        The streams of the dataset.
    """
    _remove_others(totals, workdir, uploader is not None)

    def write(stream: StreamKey) -> StreamInfo:
        return _write_stream(stream, totals.streams[stream], workdir, task, uploader)

    streams = sorted(totals.streams, key=lambda stream: (stream[0] or "", stream[1]))
    # Reading, hashing, compressing and writing all let other threads work.
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(write, streams))


def _write_stream(
    key: StreamKey, stream: _Stream, workdir: WorkDir, task: Task, uploader: Uploader | None
) -> StreamInfo:
    component, split = key
    form = task.formats[split]
    path = stream_path(component, split)
    pieces: Iterator[np.ndarray] = (workdir.tail(*tail) for tail in stream.tails)
    last = write_shards(pieces, stream.tail_tokens, workdir.data / path / _TAILS, form)
    if uploader is not None:
        for shard in last:
            uploader.upload(f"{path}/{_TAILS}/{(shard['zip_data'] or shard['raw_data'])['basename']}")
    shards = [*stream.shards, *_in_folder(last, _TAILS)]
    # A stream without a whole row has no folder: streaming cannot read an index without shards.
    if shards:
        index = workdir.data / path / INDEX
        index.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(index, json.dumps({"version": 2, "shards": shards}, sort_keys=True))
        if uploader is not None:
            uploader.upload(f"{path}/{INDEX}")
    rows = sum(shard["samples"] for shard in shards)
    left_out = stream.tail_tokens - sum(shard["samples"] for shard in last) * form.row_tokens
    return StreamInfo(
        path, component, split, form.row_tokens, rows, len(shards), rows * form.row_tokens, left_out
    )


def _in_folder(shards: Sequence[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    moved = []
    for shard in shards:
        files = {
            kind: {**shard[kind], "basename": f"{folder}/{shard[kind]['basename']}"}
            for kind in ("raw_data", "zip_data")
            if shard[kind]
        }
        moved.append({**shard, **files})
    return moved


def _remove_others(totals: Totals, workdir: WorkDir, uploaded: bool) -> None:
    """Removes what is no shard of a finished unit: of units that are gone, or of a call that was killed."""
    kept = set()
    for (component, split), stream in totals.streams.items():
        for shard in () if uploaded else stream.shards:
            file = shard["zip_data"] or shard["raw_data"]
            kept.add(workdir.data / stream_path(component, split) / file["basename"])
    for path in sorted(workdir.data.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in kept:
            path.unlink()
    workdir.data.mkdir(parents=True, exist_ok=True)


def save_tokenizer(tokenizer: TokenizerSpec, workdir: WorkDir) -> list[str]:
    """Writes the tokenizer beside the streams.

    Returns:
        Its files within the dataset.
    """
    folder, aside = workdir.data / TOKENIZER, workdir.root / "tokenizer.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        tokenizer.tokenizer.save_pretrained(str(aside))
    # The tokenizers library has no error of its own for a file that cannot be written.
    except Exception as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
    aside.rename(folder)
    return [f"{TOKENIZER}/{file.name}" for file in sorted(folder.iterdir())]
