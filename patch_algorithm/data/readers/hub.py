"""Hugging Face datasets, streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from patch_algorithm.data.readers.blocks import Block, Position, Row, cut_rows
from patch_algorithm.data.readers.source import COMPONENT, Reading, Source

__all__ = ["HUB_PREFIX", "HubSource"]

HUB_PREFIX = "hf://"


@dataclass(frozen=True)
class HubSource(Source):
    """A dataset that ``datasets`` streams: of the Hugging Face hub, or a local folder."""

    path: str
    config: str | None = None
    split: str = "train"
    place: str = "example"

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As it is named on the command line."""
        return f"{HUB_PREFIX}{self.path}"

    def open(self) -> Any:
        """The streaming dataset.

        Raises:
            ValueError: If there is no such dataset, configuration or split.
        """
        # Imported here: it takes a second, and most conversions read files.
        import datasets

        try:
            return datasets.load_dataset(self.path, self.config, split=self.split, streaming=True)
        # Whatever may go wrong in a hub, a network or a dataset's own files ends up here.
        except Exception as error:
            raise ValueError(
                f"the Hugging Face dataset {self.path!r} (config {self.config!r}, split {self.split!r}) "
                f"cannot be opened: {type(error).__name__}: {error}"
            ) from error

    def blocks(self, start: Position, reading: Reading) -> Iterator[Block]:
        """Reads from an example to the end; ``datasets`` reads past those before."""
        return cut_rows(self._rows(start.offset, reading.text_field), start, reading.block_bytes)

    def _rows(self, skipped: int, text_field: str) -> Iterator[Row]:
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
            yield Row(example.get(text_field), _component(example))

    def stamp(self) -> dict[str, Any]:
        """Nothing: a hub tells no cheap sign of change."""
        return {"config": self.config, "split": self.split}

    def size(self) -> int | None:
        """Unknown: examples are streamed."""
        return None


def _component(example: Mapping[str, Any]) -> str | None:
    meta = example.get(COMPONENT[0])
    name = meta.get(COMPONENT[1]) if isinstance(meta, Mapping) else None
    return name if isinstance(name, str) and name else None
