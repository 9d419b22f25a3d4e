"""What a conversion would do, from a sample: ``patch-level data convert --dry-run``."""

from __future__ import annotations

import time
from dataclasses import replace

from patch_algorithm.data.conversion.documents import BlockEncoder, Tally
from patch_algorithm.data.conversion.options import Conversion
from patch_algorithm.data.conversion.output import check_out
from patch_algorithm.data.conversion.records import ConversionError
from patch_algorithm.data.conversion.report import Estimate
from patch_algorithm.data.readers.blocks import Block, Position, SourceDamage
from patch_algorithm.data.readers.source import Reading, Source, total_size
from patch_algorithm.data.tokens.encoding import load_tokenizer
from patch_algorithm.data.tokens.engine import EnginesDiffer, choose_engine

__all__ = ["estimate"]

_SAMPLED_SOURCES = 16


def estimate(options: Conversion) -> Estimate:
    """Reads and encodes the beginning of some sources, and writes nothing.

    Raises:
        ValueError: As :func:`patch_algorithm.data.conversion.convert` before it begins, and at a bad
            document of the sample if ``on_error`` is ``stop``.
    """
    check_out(options)
    sources = options.find_sources()
    tokenizer = load_tokenizer(options.tokenizer)
    task = options.task(tokenizer)
    encoding = choose_engine(task.encoding, options.encoder, total_size(sources)).spec
    encoder = BlockEncoder(replace(task, encoding=encoding))
    step = -(-len(sources) // _SAMPLED_SOURCES)
    tally, sampled = Tally(), 0
    wall, processor = time.monotonic(), time.process_time()
    for source in sources[::step]:
        try:
            block = _first_block(source, options.reading)
        except SourceDamage as damage:
            if task.stop:
                raise ConversionError(f"{source.name}: {damage.reason} ({damage.detail}).") from damage
            tally.skip(damage.reason, damage.documents)
            continue
        try:
            result = encoder.encode(block)
        except EnginesDiffer:
            encoder = BlockEncoder(task)
            result = encoder.encode(block)
        if result.error is not None:
            number, reason, detail = result.error
            raise ConversionError(f"{source.name}, {source.place} {number}: {reason} ({detail}).")
        tally.add(result.tally)
        sampled += block.read_bytes
    wall, processor = time.monotonic() - wall, time.process_time() - processor
    return Estimate(
        sources=len(sources),
        size=total_size(sources),
        sampled=sampled,
        # The sample has been encoded on all cores at once, so only its processor time can be divided by them.
        seconds=wall if options.workers == 0 else processor / options.cores,
        counts=tally.counts,
        skipped=tally.skipped,
        row_tokens=options.row_lengths(sources),
        token_bytes=2 if tokenizer.dtype == "uint16" else 4,
    )


def _first_block(source: Source, reading: Reading) -> Block:
    block = next(iter(source.blocks(Position(), reading)), None)
    if block is None:
        raise SourceDamage("empty file", "it holds no documents")
    return block
