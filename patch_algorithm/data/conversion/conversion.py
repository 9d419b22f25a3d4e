"""From sources of text to a dataset of token rows: ``patch-level data convert``; see the package's notes."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from patch_algorithm.common.machine import usable_cores
from patch_algorithm.data.conversion.documents import Task
from patch_algorithm.data.conversion.engines import Engine, LocalPool, RayCluster
from patch_algorithm.data.conversion.finish import Totals, save_tokenizer, total_up, write_streams
from patch_algorithm.data.conversion.options import Conversion
from patch_algorithm.data.conversion.output import check_out, check_out_again, withdraw
from patch_algorithm.data.conversion.records import ConversionError
from patch_algorithm.data.conversion.report import Report, empty_splits
from patch_algorithm.data.conversion.upload import Uploader
from patch_algorithm.data.conversion.work import Work
from patch_algorithm.data.conversion.workdir import WorkDir, full_disk_explained
from patch_algorithm.data.dataset.description import (
    DATASET_JSON,
    ComponentCounts,
    DatasetInfo,
    EncoderInfo,
    StreamInfo,
    TokenizerInfo,
)
from patch_algorithm.data.dataset.remote import is_url
from patch_algorithm.data.readers.source import Source, total_size
from patch_algorithm.data.tokens.encoding import TokenizerSpec, load_tokenizer
from patch_algorithm.data.tokens.engine import EngineChoice, choose_engine

__all__ = ["ConversionError", "convert"]

log = logging.getLogger(__name__)


def convert(options: Conversion, tokenizer: TokenizerSpec | None = None) -> Report:
    """Converts, or continues a conversion.

    Args:
        options: What to convert, into what, and how.
        tokenizer: The tokenizer, if it is loaded already.

    Returns:
        What was written.

    Raises:
        ConversionError: If it stopped; the same call continues it.
        ValueError: If it cannot start.
    """
    started = time.monotonic()
    check_out(options)
    sources = options.find_sources()
    tokenizer = tokenizer or load_tokenizer(options.tokenizer)
    task = options.task(tokenizer)
    engine = choose_engine(task.encoding, options.encoder, total_size(sources))
    task = replace(task, encoding=engine.spec)
    log.info("%s", engine)
    workdir = WorkDir(options.work_folder.absolute(), tokenizer.dtype)
    with full_disk_explained(workdir.root), workdir.locked():
        # Another conversion may have finished while this one loaded its tokenizer.
        replaces = check_out(options) == "finished"
        if workdir.take_plan(options.plan(tokenizer), overwrite=options.overwrite):
            log.info("continuing in %s", workdir.root)
        if workdir.is_publishing():
            _publish(options, workdir)
            info, seconds = DatasetInfo.read(options.out), time.monotonic() - started
            return Report(info, options.out, seconds, val_fraction=options.val_fraction)
        if replaces:
            log.info("%s will be replaced when the conversion is finished", options.out)
            if task.url is not None:
                withdraw(task.url, workdir)
        work = Work(
            sources,
            workdir,
            options.reading,
            options.unit_bytes,
            task.stop,
            lambda: _engine(options, task, workdir, sources),
            options.progress,
        )
        work.run()
        totals = total_up(workdir, sources, work.units)
        info = _finish(options, sources, tokenizer, task, engine, workdir, totals)
        _publish(options, workdir)
        return Report(
            info,
            options.out,
            time.monotonic() - started,
            work.encoded,
            totals.examples,
            options.val_fraction,
        )


def _engine(options: Conversion, task: Task, workdir: WorkDir, sources: Sequence[Source]) -> Engine:
    if options.engine == "ray":
        return RayCluster(task, workdir, options.workers, options.ray_address)
    if options.workers == 0:
        return Engine(task, workdir)
    units = max(len(sources), (total_size(sources) or 0) // options.unit_bytes)
    threads = max(1, options.cores // units) if total_size(sources) is not None else 1
    return LocalPool(task, workdir, options.cores, threads)


def _finish(
    options: Conversion,
    sources: Sequence[Source],
    tokenizer: TokenizerSpec,
    task: Task,
    engine: EngineChoice,
    workdir: WorkDir,
    totals: Totals,
) -> DatasetInfo:
    uploader = Uploader(workdir.data, task.url) if task.url is not None else None
    # Tails lie on this machine, whatever a cluster has.
    threads = usable_cores() if options.engine == "ray" else options.cores
    streams = write_streams(totals, workdir, task, threads, uploader)
    if not any(stream.rows for stream in streams):
        raise ConversionError(
            f"the {totals.tally.total.tokens:,} tokens of the sources do not fill one row of "
            f"{options.row_tokens:,}; ask for shorter rows with --row-tokens, or convert more text, with "
            "--overwrite."
        )
    for file in save_tokenizer(tokenizer, workdir):
        if uploader is not None:
            uploader.upload(file)
    info = _info(options, sources, tokenizer, engine, totals, tuple(streams))
    for line in empty_splits(info, options.val_fraction):
        log.warning("%s", line)
    info.write(workdir.data)
    return info


def _info(
    options: Conversion,
    sources: Sequence[Source],
    tokenizer: TokenizerSpec,
    engine: EngineChoice,
    totals: Totals,
    streams: tuple[StreamInfo, ...],
) -> DatasetInfo:
    components: dict[str, dict[str, ComponentCounts]] = {}
    for (component, split), counts in sorted(totals.tally.counts.items()):
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
        row_tokens=options.row_lengths(sources),
        split_by_component=options.split_by_component,
        compression=options.compression,
        streams=streams,
        components=components,
        skipped=dict(sorted(totals.tally.skipped.items())),
        sources=tuple(source.name for source in sources),
        encoder=_encoder_info(engine, totals),
    )


def _encoder_info(engine: EngineChoice, totals: Totals) -> EncoderInfo:
    differed = totals.tally.differed > 0
    # How much is checked after a difference depends on when the workers hear of it.
    return EncoderInfo(engine.version, engine.probes, 0 if differed else totals.tally.checked, differed)


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
