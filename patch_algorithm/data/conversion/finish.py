"""From the finished units to the dataset: the rows of the tails, the indexes, ``dataset.json``."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from patch_algorithm.common.files import write_atomically
from patch_algorithm.data.conversion.documents import EXAMPLES, BadDocument, StreamKey, Tally, Task
from patch_algorithm.data.conversion.records import ConversionError, StreamPart
from patch_algorithm.data.conversion.upload import Uploader
from patch_algorithm.data.conversion.workdir import WorkDir
from patch_algorithm.data.conversion.writing import TOKENIZER, stream_path, write_shards
from patch_algorithm.data.dataset.description import INDEX, StreamInfo
from patch_algorithm.data.readers.blocks import SourceDamage
from patch_algorithm.data.readers.source import Source
from patch_algorithm.data.tokens.encoding import TokenizerSpec

__all__ = ["Totals", "save_tokenizer", "total_up", "write_streams"]

_TAILS = "tails"


@dataclass
class Totals:
    """What all units hold.

    Attributes:
        tally: What was read.
        examples: The first bad documents with their sources.
        parts: What each unit holds of each stream, with the unit's name and where its tail there starts.
    """

    tally: Tally = field(default_factory=Tally)
    examples: list[tuple[str, BadDocument]] = field(default_factory=list)
    parts: dict[StreamKey, list[tuple[str, StreamPart, int]]] = field(default_factory=dict)


def total_up(
    workdir: WorkDir, sources: Sequence[Source], units: Sequence[tuple[Sequence[str], SourceDamage | None]]
) -> Totals:
    """Adds up the units of all sources, which are finished.

    Args:
        workdir: Where they are.
        sources: The sources.
        units: Of each source the names of its units, and why it could not be read to its end.

    Raises:
        ConversionError: If a unit is not there, because something else has removed files.
    """
    totals, records = Totals(), workdir.records()
    for source, (names, damage) in zip(sources, units, strict=True):
        for name in names:
            if (record := records.get(name)) is None:
                raise ConversionError(
                    f"units of {source.name} have vanished from {workdir.root}; repeat the command."
                )
            totals.tally.add(record.tally)
            totals.examples += [(source.name, bad) for bad in record.tally.examples]
            start = 0
            for part in record.parts:
                totals.parts.setdefault((part.component, part.split), []).append((name, part, start))
                start += part.tail
        if damage is not None:
            totals.tally.skip(damage.reason, damage.documents)
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
    streams = sorted(totals.parts, key=lambda stream: (stream[0] or "", stream[1]))
    # Reading, hashing, compressing and writing all let other threads work.
    with ThreadPoolExecutor(threads) as pool:
        return list(
            pool.map(lambda stream: _write_stream(totals.parts[stream], workdir, task, uploader), streams)
        )


def _write_stream(
    parts: Sequence[tuple[str, StreamPart, int]], workdir: WorkDir, task: Task, uploader: Uploader | None
) -> StreamInfo:
    _, (component, split, _, _), _ = parts[0]
    form, path = task.formats[split], stream_path(component, split)
    tails = (workdir.tail(unit, start, part.tail) for unit, part, start in parts)
    tokens = sum(part.tail for _, part, _ in parts)
    last = write_shards(tails, tokens, workdir.data / path, _TAILS, form)
    shards = [*(shard for _, part, _ in parts for shard in part.shards), *last]
    # A stream without a whole row has no folder: streaming cannot read an index without shards.
    if shards:
        (workdir.data / path).mkdir(parents=True, exist_ok=True)
        index = json.dumps({"version": 2, "shards": shards}, sort_keys=True)
        write_atomically(workdir.data / path / INDEX, index)
        if uploader is not None:
            for file, _ in StreamPart(component, split, last, 0).files():
                uploader.upload(file)
            uploader.upload(f"{path}/{INDEX}")
    rows = sum(shard["samples"] for shard in shards)
    left_out = tokens - sum(shard["samples"] for shard in last) * form.row_tokens
    return StreamInfo(
        path, component, split, form.row_tokens, rows, len(shards), rows * form.row_tokens, left_out
    )


def _remove_others(totals: Totals, workdir: WorkDir, uploaded: bool) -> None:
    """Removes shards that belong to no finished unit, such as those of a call that was killed."""
    parts = [part for parts in totals.parts.values() for _, part, _ in parts]
    kept = {workdir.data / file for part in parts for file, _ in part.files() if not uploaded}
    for path in sorted(workdir.data.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in kept:
            path.unlink()
    workdir.data.mkdir(parents=True, exist_ok=True)


def save_tokenizer(tokenizer: TokenizerSpec, workdir: WorkDir) -> list[str]:
    """Writes the tokenizer next to the streams.

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
