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

from patch_algorithm.common.machine import usable_cores
from patch_algorithm.data.conversion.assembly import (
    TOKENIZER,
    Assembly,
    Totals,
    check_folders,
    stream_path,
    total_up,
)
from patch_algorithm.data.conversion.documents import Task
from patch_algorithm.data.conversion.engines import Engine, InProcess, LocalPool, RayCluster
from patch_algorithm.data.conversion.options import Conversion
from patch_algorithm.data.conversion.output import check_out, check_out_again, withdraw
from patch_algorithm.data.conversion.packing import StreamPlan
from patch_algorithm.data.conversion.progress import TokenisingBar
from patch_algorithm.data.conversion.report import Report
from patch_algorithm.data.conversion.tokenising import Tokenising
from patch_algorithm.data.conversion.upload import Uploader
from patch_algorithm.data.conversion.workdir import ConversionError, WorkDir, no_room_told
from patch_algorithm.data.dataset.description import (
    DATASET_JSON,
    ComponentCounts,
    DatasetInfo,
    StreamInfo,
    TokenizerInfo,
)
from patch_algorithm.data.dataset.remote import is_url
from patch_algorithm.data.readers.source import Source, total_size
from patch_algorithm.data.tokens.encoding import TokenizerSpec, load_tokenizer

__all__ = ["ConversionError", "convert"]

log = logging.getLogger(__name__)


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
        withdraw(url, options, workdir)
    assembly.pack(plans)
    _save_tokenizer(tokenizer, workdir)
    for file in sorted((workdir.data / TOKENIZER).iterdir()):
        assembly.upload(file.relative_to(workdir.data))
    info.write(workdir.data)
    _publish(options, workdir)
    return Report(info, options.out, time.monotonic() - started, bar.counts, totals.examples)


def _engine(options: Conversion, task: Task) -> Engine:
    if options.engine == "ray":
        return RayCluster(task, options.workers, options.ray_address)
    if options.workers == 0:
        return InProcess(task)
    return LocalPool(task, options.cores)


def _layout(
    options: Conversion, sources: list[Source], tokenizer: TokenizerSpec, totals: Totals
) -> tuple[DatasetInfo, list[StreamPlan]]:
    row_tokens = options.row_lengths(sources)
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


def _publish(options: Conversion, workdir: WorkDir) -> None:
    waits = (workdir.data / DATASET_JSON).exists()
    replaces = waits and check_out_again(options, workdir) == "finished"
    if not is_url(options.out):
        workdir.publish(options.out_folder, replaces)
        return
    workdir.mark_publishing()
    if waits:
        Uploader(workdir.data, options.out).upload(DATASET_JSON)
    workdir.remove()
