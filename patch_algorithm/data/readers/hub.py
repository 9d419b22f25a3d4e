"""Hugging Face datasets, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from patch_algorithm.data.readers.blocks import Block, Position, Row, cut_rows
from patch_algorithm.data.readers.fields import component_of, look_up
from patch_algorithm.data.readers.source import Reading, Source

__all__ = ["HUB_PREFIX", "HubSource"]

HUB_PREFIX = "hf://"


@dataclass(frozen=True)
class HubSource(Source):
    """A dataset that ``datasets`` streams: of the Hugging Face hub, or a local folder."""

    path: str
    config: str | None = None
    hub_split: str = "train"
    place: str = "example"
    split: str | None = None

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As it is named on the command line, with its split unless that is ``train``."""
        return f"{HUB_PREFIX}{self.path}" + (f" ({self.hub_split})" if self.hub_split != "train" else "")

    def open(self) -> Any:
        """The streaming dataset.

        Raises:
            ValueError: If there is no such dataset, configuration or split.
        """
        # Imported here: it takes a second, and most conversions read files.
        import datasets

        try:
            return datasets.load_dataset(self.path, self.config, split=self.hub_split, streaming=True)
        # Whatever may go wrong in a hub, a network or a dataset's own files ends up here.
        except Exception as error:
            raise ValueError(
                f"the Hugging Face dataset {self.path!r} (config {self.config!r}, split {self.hub_split!r}) "
                f"cannot be opened: {type(error).__name__}: {error}"
            ) from error

    def blocks(self, start: Position, reading: Reading) -> Iterator[Block]:
        """Reads from an example to the end; ``datasets`` reads past those before."""
        for block in cut_rows(self._rows(start.offset, reading), start, reading.block_bytes):
            yield replace(block, split=self.split)

    def _rows(self, skipped: int, reading: Reading) -> Iterator[Row]:
        examples = iter(self.open().skip(skipped))
        while True:
            try:
                example = next(examples)
            except StopIteration:
                return
            # A lost connection is no bad document: it must not be skipped over.
            except Exception as error:
                raise OSError(
                    f"the stream broke off: {type(error).__name__}: {error}. (If it breaks off there each "
                    "time, name the dataset's files themselves, .jsonl or .parquet, as the source: bad lines "
                    "are then named, and can be skipped.)"
                ) from error
            yield Row(look_up(example, reading.text_field), component_of(example, reading.component_field))

    def stamp(self) -> dict[str, Any]:
        """Nothing: a hub tells no cheap sign of change."""
        return {"config": self.config, "split": self.hub_split, "into": self.split}

    def size(self) -> int | None:
        """Unknown: examples are streamed."""
        return None
