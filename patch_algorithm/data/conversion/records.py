"""What a conversion remembers of the units that are finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from patch_algorithm.data.conversion.documents import BadDocument, Counts, Tally
from patch_algorithm.data.conversion.writing import stream_path
from patch_algorithm.data.readers.blocks import Position

__all__ = ["ConversionError", "StreamPart", "UnitRecord"]


class ConversionError(ValueError):
    """A conversion that has stopped and can be continued."""


class StreamPart(NamedTuple):
    """What a unit holds of one stream.

    Attributes:
        component: ``None`` where all components share a stream.
        split: ``train`` or ``val``.
        shards: Its shards as the stream's ``index.json`` lists them, with their sizes and hashes.
        tail: How many tokens come after the rows of those, in the unit's tail.
    """

    component: str | None
    split: str
    shards: list[dict[str, Any]]
    tail: int

    def files(self) -> list[tuple[str, int]]:
        """The shards' files within the dataset, and their sizes."""
        path = stream_path(self.component, self.split)
        files = [shard["zip_data"] or shard["raw_data"] for shard in self.shards]
        return [(f"{path}/{file['basename']}", file["bytes"]) for file in files]


@dataclass(frozen=True)
class UnitRecord:
    """What is known of a finished unit.

    Attributes:
        start: Where it begins in its source.
        end: Where it ends.
        last: Whether its source is known to end with it.
        stamp: The source's stamp when it was read.
        digest: Hash of its text, in hexadecimal digits.
        read_bytes: Bytes of the file that were read for it.
        uploaded: Whether its shards are in the object store, and not here.
        parts: Its streams, in the order of their tokens in the tail.
        tally: What was read.
    """

    start: Position
    end: Position
    last: bool
    stamp: dict[str, Any]
    digest: str
    read_bytes: int
    uploaded: bool
    parts: list[StreamPart]
    tally: Tally = field(default_factory=Tally)

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        tally = self.tally
        counts = [[*key, *values] for key, values in sorted(tally.counts.items())]
        numbers = [counts, tally.skipped, tally.examples, tally.checked, tally.differed]
        return {**asdict(self), "tally": numbers}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> UnitRecord:
        """As it was written."""
        counts, skipped, examples, checked, differed = value["tally"]
        tally = Tally(
            {(name, split): Counts(*numbers) for name, split, *numbers in counts},
            skipped,
            [BadDocument(*example) for example in examples],
            checked,
            differed,
        )
        made: dict[str, Any] = {
            **value,
            "start": Position(*value["start"]),
            "end": Position(*value["end"]),
            "parts": [StreamPart(*part) for part in value["parts"]],
            "tally": tally,
        }
        return cls(**made)
