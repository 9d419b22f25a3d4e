"""Whether documents name their components, seen from the first of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from patch_algorithm.data.readers.blocks import Block, Position, SourceDamage
from patch_algorithm.data.readers.fields import component_fields, component_of, parse_json
from patch_algorithm.data.readers.source import Reading, Source
from patch_algorithm.data.readers.texts import TextSource

__all__ = ["check_labels"]

log = logging.getLogger(__name__)

_SAMPLED_SOURCES = 16
_SAMPLED_DOCUMENTS = 100
_SAMPLED_BYTES = 1 << 16


def check_labels(sources: Sequence[Source], reading: Reading, stop: bool) -> None:
    """Checks that some of the first documents name a component, before hours go into one stream `unlabelled`.

    Args:
        sources: The sources; the first documents of 16 of them are looked at.
        reading: How they are read.
        stop: Whether it is an error if none does, rather than a warning.

    Raises:
        ValueError: If none does.
    """
    small = replace(reading, block_bytes=min(_SAMPLED_BYTES, reading.block_bytes))
    seen, fields = 0, dict[str, None]()
    for source in sources[:: -(-len(sources) // _SAMPLED_SOURCES)]:
        for labelled, named in islice(_documents(source, small), _SAMPLED_DOCUMENTS):
            if labelled:
                return
            seen += 1
            fields.update(dict.fromkeys(named))
    if not seen:
        return
    told = (
        f"--split-by-component: none of the first {seen:,} documents names its component in "
        f"{' or '.join(component_fields(reading.component_field))}."
        + (f" They have the fields {', '.join(fields)}." if fields else "")
        + " Name the right one with --component-field (a dot leads into an object), or leave "
        "--split-by-component out."
    )
    if stop:
        raise ValueError(told)
    log.warning("%s All of them go into the component `unlabelled`.", told)


def _documents(source: Source, reading: Reading) -> Iterator[tuple[bool, list[str]]]:
    """For each of the first documents, whether it names a component, and which fields it has."""
    if isinstance(source, TextSource):
        yield False, []
        return
    try:
        block = next(iter(source.blocks(Position(), reading)), None)
    # What cannot be read is reported by those who read it.
    except (SourceDamage, OSError):
        return
    if block is None:
        return
    if isinstance(block.data, bytes):
        yield from _lines(block, block.data, reading)
    else:
        yield from ((row.component is not None, []) for row in block.data)


def _lines(block: Block, data: bytes, reading: Reading) -> Iterator[tuple[bool, list[str]]]:
    for index, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n")):
        if index in block.overlong or not line.strip():
            continue
        try:
            document = parse_json(line)
        except ValueError:
            continue
        if isinstance(document, Mapping):
            named = [field for field in _strings(document) if field != reading.text_field]
            yield component_of(document, reading.component_field) is not None, named


def _strings(document: Mapping[str, Any]) -> Iterator[str]:
    for name, value in document.items():
        if isinstance(value, str):
            yield name
        elif isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner, own in value.items() if isinstance(own, str))
