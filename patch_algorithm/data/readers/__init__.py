"""Sources of text to blocks of whole documents. Knows no tokens."""

from __future__ import annotations

from patch_algorithm.data.readers.blocks import Block, Position, SourceDamage
from patch_algorithm.data.readers.find import find_sources
from patch_algorithm.data.readers.hub import HubSource
from patch_algorithm.data.readers.lines import LineSource
from patch_algorithm.data.readers.source import Reading, Source
from patch_algorithm.data.readers.tables import TableSource
from patch_algorithm.data.readers.texts import TextSource

__all__ = [
    "Block",
    "HubSource",
    "LineSource",
    "Position",
    "Reading",
    "Source",
    "SourceDamage",
    "TableSource",
    "TextSource",
    "find_sources",
]
