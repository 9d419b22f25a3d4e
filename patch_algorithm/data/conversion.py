"""From sources of text to a dataset of token rows: ``patch-level data convert``.

A conversion has two phases. First every source is cut into units, fixed runs of its documents, whose
tokens are kept in a work folder beside the output. Then the tokens of all units, in order, are cut into
rows and packed into shards. A unit and a shard come out the same wherever and whenever they are made, so
that a conversion can be killed at any moment and continued by the same command.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Literal

from patch_algorithm.data.assembly import TOKENIZER, Assembly, Totals, check_folders, stream_path, total_up
from patch_algorithm.data.dataset_info import (
    DATASET_JSON,
    ComponentCounts,
    DatasetInfo,
    StreamInfo,
    TokenizerInfo,
    read_text,
)
from patch_algorithm.data.documents import Task
from patch_algorithm.data.encoding import TokenizerSpec, load_tokenizer
from patch_algorithm.data.engines import Engine, InProcess, LocalPool, RayCluster, usable_cores
from patch_algorithm.data.options import Conversion
from patch_algorithm.data.packing import INDEX, StreamPlan
from patch_algorithm.data.progress import TokenisingBar
from patch_algorithm.data.remote import Uploader, is_url
from patch_algorithm.data.report import Report
from patch_algorithm.data.sources import Source, total_size
from patch_algorithm.data.tokenising import Tokenising
from patch_algorithm.data.workdir import ConversionError, WorkDir, no_room_told, write_whole

__all__ = ["ConversionError", "check_out", "convert"]

log = logging.getLogger(__name__)

_MARK = '{"format": "being replaced"}\n'


def convert(options: Conversion, tokenizer: TokenizerSpec | None = None) -> Report:
    """Converts, or continues a conversion.

    Args:
        options: What is to be done.
        tokenizer: The tokenizer, where it is loaded already.

    Returns:
        What came out.

    Raises:
        ConversionError: Where it has stopped; the same call continues it.
        ValueError: If it cannot begin.
    """
    started = time.monotonic()
    check_out(options)
    sources = options.find_sources()
    tokenizer = tokenizer or load_tokenizer(options.tokenizer)
    task = options.task(tokenizer)
    workdir = WorkDir(options.work_folder, tokenizer.dtype)
    with no_room_told(workdir.root), workdir.locked():
        # Another conversion may have finished while this one loaded its tokenizer.
        replaces = check_out(options) == "finished"
        if workdir.take_plan(options.plan(sources, tokenizer), anew=options.overwrite):
            log.info("continuing in %s", workdir.root)
        if workdir.is_publishing():
            _publish(options, workdir)
            return Report(DatasetInfo.read(options.out), options.out, time.monotonic() - started)
        if replaces:
            log.info("%s will be replaced when the conversion is finished", options.out)
        return _work(options, sources, tokenizer, task, workdir, started)


def _work(
    options: Conversion,
    sources: list[Source],
    tokenizer: TokenizerSpec,
    task: Task,
    workdir: WorkDir,
    started: float,
) -> Report:
    with TokenisingBar(total_size(sources), options.progress) as bar:
        Tokenising(
            sources,
            workdir,
            options.reading,
            options.unit_bytes,
            task.stop,
            lambda: _engine(options, task),
            bar,
        ).run()
    totals = total_up(workdir, [source.name for source in sources])
    info, plans = _layout(options, sources, tokenizer, totals)
    url = options.out if is_url(options.out) else None
    # Shards are packed here, whatever a cluster has.
    cores = usable_cores() if options.engine == "ray" else options.cores
    assembly = Assembly(workdir, cores, url, options.progress)
    if url:
        _withdraw(url, options, workdir)
    assembly.pack(plans)
    _save_tokenizer(tokenizer, workdir)
    for file in sorted((workdir.data / TOKENIZER).iterdir()):
        assembly.upload(file.relative_to(workdir.data))
    info.write(workdir.data)
    _publish(options, workdir)
    return Report(info, options.out, time.monotonic() - started, bar.counts, totals.examples)


def check_out(options: Conversion) -> Literal["absent", "finished"]:
    """Looks at the places where the dataset shall lie and where unfinished work is kept.

    Raises:
        ValueError: If something is there that is not to be replaced, or it cannot be written to.
    """
    workdir = WorkDir(options.work_folder, "uint16")
    if is_url(options.out):
        # It says now, and not after hours, if it cannot be written to.
        uploader = Uploader(workdir.data, options.out)
        found = _found_at(options.out)
        # An unfinished conversion of ours is told from other data by the work folder alone.
        if found is None and not workdir.is_for(options.out):
            _check_nothing_there(options, uploader)
    else:
        _check_apart(options)
        found = _found_in(options.out_folder)
        if found is not None and options.overwrite:
            _check_nothing_else(options.out_folder, found)
        if _device(options.work_folder) != _device(options.out_folder):
            raise ValueError(
                f"unfinished work would be kept in {options.work_folder}, on another file system than "
                f"--out {options.out}, so that it could not be renamed when it is finished; name two folders "
                "on one file system, with --work-dir and --out."
            )
    if found is not None and not options.overwrite and not _is_published(found, options, workdir):
        workdir.remove_if_empty()
        raise ValueError(
            f"--out {options.out} is a finished dataset already; add --overwrite to replace it, or name "
            "another folder."
        )
    workdir.check_ours()
    return "absent" if found is None else "finished"


def _found_in(out: Path) -> DatasetInfo | None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        return DatasetInfo.read(out)
    except ValueError as error:
        raise _something_else(out, error) from error


def _check_apart(options: Conversion) -> None:
    """Makes sure that moving datasets to and from ``--out`` moves nothing else, and the reverse."""
    out, work = options.out_folder, options.work_folder.resolve()
    if out.is_relative_to(work) or work.is_relative_to(out):
        raise ValueError(
            f"--work-dir {options.work_folder} and --out {options.out} lie one within the other; name two "
            "folders that do not."
        )
    for name in (*options.sources, options.tokenizer):
        if isinstance(name, str) and Path(name).exists() and Path(name).resolve().is_relative_to(out):
            raise ValueError(f"{name} lies within --out {options.out}; move it, or name another folder.")


def _check_nothing_else(out: Path, found: DatasetInfo) -> None:
    ours = {DATASET_JSON, TOKENIZER, *(stream.path.partition("/")[0] for stream in found.streams)}
    if others := sorted({path.name for path in out.iterdir()} - ours):
        raise ValueError(
            f"--out {out} holds {', '.join(others)} beside the dataset that is to be replaced; move that "
            "elsewhere first."
        )


def _check_nothing_there(options: Conversion, uploader: Uploader) -> None:
    if uploader.holds_anything():
        raise _something_else(options.out, f"there are objects, but no {DATASET_JSON}")
    # Not every store can be asked for what it holds.
    for split in options.row_lengths:
        try:
            read_text(options.out, f"{split}/{INDEX}")
        except FileNotFoundError:
            continue
        raise _something_else(options.out, f"it has {split}/{INDEX}, but no {DATASET_JSON}")


def _found_at(url: str) -> DatasetInfo | None:
    try:
        return DatasetInfo.find(url)
    except ValueError as error:
        if read_text(url, DATASET_JSON) != _MARK:
            raise _something_else(url, error) from error
        return None


def _something_else(out: str | Path, reason: object) -> ValueError:
    return ValueError(
        f"--out {out}: something else is there and stays there; name another folder, or remove it first. "
        f"({reason})"
    )


def _is_published(found: DatasetInfo, options: Conversion, workdir: WorkDir) -> bool:
    # Renamed, or uploaded, in an earlier call that could not clean up any more.
    if not workdir.is_publishing():
        return False
    left = DatasetInfo.find(workdir.data)
    return left is None or (is_url(options.out) and left == found)


def _device(path: Path) -> int:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def _engine(options: Conversion, task: Task) -> Engine:
    if options.engine == "ray":
        return RayCluster(task, options.workers, options.ray_address)
    if options.workers == 0:
        return InProcess(task)
    return LocalPool(task, options.cores)


def _layout(
    options: Conversion, sources: list[Source], tokenizer: TokenizerSpec, totals: Totals
) -> tuple[DatasetInfo, list[StreamPlan]]:
    row_tokens = options.row_lengths
    if options.split_by_component:
        check_folders(sorted({component for component, _ in totals.counts}))
    plans, streams = [], []
    for component, split in sorted(totals.pieces, key=lambda key: (key[0] or "", key[1])):
        plan = StreamPlan(
            path=stream_path(component, split),
            row_tokens=row_tokens[split],
            dtype=tokenizer.dtype,
            compression=options.compression,
            pieces=tuple(totals.pieces[component, split]),
            shard_bytes=options.shard_bytes,
        )
        plans.append(plan)
        streams.append(
            StreamInfo(
                plan.path,
                component,
                split,
                plan.row_tokens,
                plan.rows,
                plan.shards,
                plan.tokens,
                plan.tokens_left_out,
            )
        )
    if not any(plan.rows for plan in plans):
        tokens = sum(counts.tokens for counts in totals.counts.values())
        raise ConversionError(
            f"the {tokens:,} tokens of the sources do not fill one row of {options.row_tokens:,}; ask for "
            "shorter rows with --row-tokens, or convert more text, with --overwrite."
        )
    return _info(options, sources, tokenizer, totals, row_tokens, tuple(streams)), plans


def _info(
    options: Conversion,
    sources: list[Source],
    tokenizer: TokenizerSpec,
    totals: Totals,
    row_tokens: dict[str, int],
    streams: tuple[StreamInfo, ...],
) -> DatasetInfo:
    components: dict[str, dict[str, ComponentCounts]] = {}
    for (component, split), counts in sorted(totals.counts.items()):
        components.setdefault(component, {})[split] = ComponentCounts(*counts)
    return DatasetInfo(
        tokenizer=TokenizerInfo(
            fingerprint=tokenizer.fingerprint,
            name=tokenizer.name,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
            bos_id=tokenizer.bos_id,
            special_tokens=options.special_tokens,
            adds_eos=options.eos,
            adds_bos=options.bos,
        ),
        dtype=tokenizer.dtype,
        row_tokens=row_tokens,
        split_by_component=options.split_by_component,
        compression=options.compression,
        streams=streams,
        components=components,
        skipped=dict(sorted(totals.skipped.items())),
        sources=tuple(source.name for source in sources),
    )


def _save_tokenizer(tokenizer: TokenizerSpec, workdir: WorkDir) -> None:
    folder, aside = workdir.data / TOKENIZER, workdir.root / "tokenizer.partial"
    if folder.is_dir():
        return
    shutil.rmtree(aside, ignore_errors=True)
    try:
        tokenizer.tokenizer.save_pretrained(str(aside))
    # The tokenizers library has no error of its own for a file that cannot be written.
    except Exception as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
    aside.rename(folder)


def _withdraw(url: str, options: Conversion, workdir: WorkDir) -> None:
    # From its first new shard on, what was there is no finished dataset any more.
    if _recheck_out(options, workdir) == "finished":
        folder = workdir.root / "withdrawn"
        folder.mkdir(exist_ok=True)
        write_whole(folder / DATASET_JSON, _MARK.encode())
        Uploader(folder, url).upload(DATASET_JSON)


def _recheck_out(options: Conversion, workdir: WorkDir) -> Literal["absent", "finished"]:
    # Hours have passed, in which others may have written there.
    try:
        return check_out(options)
    except ValueError as error:
        raise ConversionError(
            f"{error} What is finished is kept in {workdir.root}: repeat the command when that is mended."
        ) from error


def _publish(options: Conversion, workdir: WorkDir) -> None:
    waits = (workdir.data / DATASET_JSON).exists()
    replaces = waits and _recheck_out(options, workdir) == "finished"
    if not is_url(options.out):
        workdir.publish(options.out_folder, replaces)
        return
    workdir.mark_publishing()
    if waits:
        Uploader(workdir.data, options.out).upload(DATASET_JSON)
    workdir.remove()
