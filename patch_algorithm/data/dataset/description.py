"""What a converted dataset says of itself: ``dataset.json``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from patch_algorithm.common.files import write_atomically
from patch_algorithm.common.version import __version__
from patch_algorithm.data.dataset.remote import download, is_url

__all__ = [
    "DATASET_JSON",
    "INDEX",
    "TOKENIZER_JSON",
    "ComponentCounts",
    "DatasetInfo",
    "EncoderInfo",
    "StreamInfo",
    "TokenizerInfo",
]

DATASET_JSON = "dataset.json"
INDEX = "index.json"
TOKENIZER_JSON = "tokenizer/tokenizer.json"
FORMAT = 1

_TYPES = {
    "bool": (bool,),
    "int": (int,),
    "int | None": (int, NoneType),
    "str": (str,),
    "str | None": (str, NoneType),
}
_T = TypeVar("_T")


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer that the dataset was written with, and what was added to each document."""

    fingerprint: str
    name: str
    vocab_size: int
    eos_id: int | None
    bos_id: int | None
    special_tokens: str
    adds_eos: bool
    adds_bos: bool


@dataclass(frozen=True)
class EncoderInfo:
    """The library that made the ids.

    Attributes:
        name: With its version.
        probes: On how many probes it agreed with ``tokenizers`` beforehand; 0 where it is that.
        documents: How many documents of the dataset both have encoded, with the same ids.
        differed: Whether a document had other ids, after which ``tokenizers`` encoded the rest, with all of
            the unit that it is in.
    """

    name: str
    probes: int = 0
    documents: int = 0
    differed: bool = False

    def __str__(self) -> str:
        if not self.probes:
            return f"encoded by {self.name}"
        if self.differed:
            return f"encoded by {self.name} until a document had other ids, then by tokenizers"
        return f"encoded by {self.name}, checked on {self.probes:,} probes and {self.documents:,} documents"


@dataclass(frozen=True)
class StreamInfo:
    """One stream of rows.

    Attributes:
        path: Its folder within the dataset; there is none where ``rows`` is 0.
        component: The Pile component it holds; ``None`` for all of them.
        split: ``train`` or ``val``.
        row_tokens: Tokens in a row.
        rows: Rows.
        shards: Shard files.
        tokens: Tokens in rows.
        tokens_left_out: Tokens at the end that did not fill a row.
    """

    path: str
    component: str | None
    split: str
    row_tokens: int
    rows: int
    shards: int
    tokens: int
    tokens_left_out: int


@dataclass(frozen=True)
class ComponentCounts:
    """What was read of one component for one split; tokens with EOS and BOS, bytes of UTF-8 text."""

    documents: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class DatasetInfo:
    """The typed form of ``dataset.json``.

    Attributes:
        tokenizer: The tokenizer.
        dtype: ``uint16`` or ``uint32``.
        row_tokens: Tokens in a row of each split.
        split_by_component: Whether each component has streams of its own.
        compression: ``None`` or ``zstd``.
        streams: The streams.
        components: Counts by component, then by split.
        skipped: Lines that were skipped, by reason.
        sources: The names of the sources.
        created_by: The program and its version.
        encoder: The library that made the ids; ``None`` where an earlier version did not say.
    """

    tokenizer: TokenizerInfo
    dtype: str
    row_tokens: dict[str, int]
    split_by_component: bool
    compression: str | None
    streams: tuple[StreamInfo, ...]
    components: dict[str, dict[str, ComponentCounts]]
    skipped: dict[str, int] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    created_by: str = f"patch-algorithm {__version__}"
    encoder: EncoderInfo | None = None

    @property
    def max_row_tokens(self) -> int:
        """The length of the longest rows."""
        return max(self.row_tokens.values())

    def stream(self, split: str, component: str | None = None) -> StreamInfo:
        """The stream of a split, of a component where each has its own.

        Raises:
            ValueError: If there is none, naming those that there are.
        """
        for stream in self.streams:
            if stream.split == split and stream.component == component:
                return stream
        there = ", ".join(
            stream.split if stream.component is None else f"{stream.component} {stream.split}"
            for stream in self.streams
        )
        asked = split if component is None else f"{component} {split}"
        how = ""
        if component is None and self.split_by_component:
            how = " It is split by component: name one with --component."
        raise ValueError(f"the dataset has no stream {asked!r}; it has {there or 'none'}.{how}")

    def to_json(self) -> dict[str, Any]:
        """The content of ``dataset.json``."""
        return {"format": FORMAT, "created_by": self.created_by, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> DatasetInfo:
        """Reads the content of ``dataset.json``.

        Raises:
            ValueError: If it is not of the format this version writes.
        """
        if content.get("format") != FORMAT:
            raise ValueError(
                f"{DATASET_JSON} has format {content.get('format')!r}; this version reads format {FORMAT}."
            )
        try:
            if content["dtype"] not in ("uint16", "uint32"):
                raise TypeError(f"dtype is {content['dtype']!r}")
            return cls(
                tokenizer=_made(TokenizerInfo, content["tokenizer"]),
                dtype=content["dtype"],
                row_tokens=dict(content["row_tokens"]),
                split_by_component=content["split_by_component"],
                compression=content["compression"],
                streams=tuple(_made(StreamInfo, stream) for stream in content["streams"]),
                components={
                    name: {split: _made(ComponentCounts, counts) for split, counts in splits.items()}
                    for name, splits in content["components"].items()
                },
                skipped=dict(content["skipped"]),
                sources=tuple(content["sources"]),
                created_by=content["created_by"],
                encoder=_made(EncoderInfo, content["encoder"]) if content.get("encoder") else None,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{DATASET_JSON} is not that of a converted dataset: {error!r}.") from error

    @classmethod
    def read(cls, folder: str | Path) -> DatasetInfo:
        """Reads ``dataset.json`` from a local folder or a URL.

        Raises:
            ValueError: If there is none, or it cannot be read.
        """
        found = cls.find(folder)
        if found is None:
            raise ValueError(
                f"{folder} holds no {DATASET_JSON}; expected the output of a finished "
                "`patch-level data convert`."
            )
        return found

    @classmethod
    def find(cls, folder: str | Path) -> DatasetInfo | None:
        """As :meth:`read`; ``None`` where there is no finished dataset.

        Raises:
            ValueError: If there is something that cannot be read.
        """
        try:
            content = json.loads(read_text(folder, DATASET_JSON))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{DATASET_JSON} in {folder} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{DATASET_JSON} in {folder} is not a JSON object.")
        try:
            return cls.from_json(content)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def write(self, folder: Path) -> None:
        """Writes ``dataset.json`` into a local folder, at once and whole."""
        write_atomically(
            folder / DATASET_JSON, json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        )


def _made(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """A dataclass of plain values, each of the type that it is declared with."""
    made = kind(**values)
    for known in fields(kind):  # pyright: ignore[reportArgumentType]
        value = getattr(made, known.name)
        if type(value) not in _TYPES[str(known.type)]:
            raise TypeError(f"{known.name} is {value!r}, not {known.type}")
    return made


def read_text(folder: str | Path, file: str) -> str:
    """Reads a small file of a dataset.

    Raises:
        FileNotFoundError: If it is not there.
    """
    with tempfile.TemporaryDirectory() as aside:
        return local_copy(folder, file, aside).read_text(encoding="utf-8")


def local_copy(folder: str | Path, file: str, aside: str | Path) -> Path:
    """The file itself in a local folder, its download in ``aside`` for a URL.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If the object store cannot be read.
    """
    if not is_url(folder):
        return Path(folder) / file
    path = Path(aside) / Path(file).name
    download(f"{str(folder).rstrip('/')}/{file}", path)
    return path
