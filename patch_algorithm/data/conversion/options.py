"""The options of a conversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from patch_algorithm.common.machine import usable_cores
from patch_algorithm.data.conversion.documents import TRAIN, VAL, Task
from patch_algorithm.data.conversion.workdir import PLAN_FORMAT
from patch_algorithm.data.conversion.writing import RowFormat
from patch_algorithm.data.dataset.remote import is_url
from patch_algorithm.data.readers.empty import check_not_empty
from patch_algorithm.data.readers.find import find_sources
from patch_algorithm.data.readers.labels import check_labels
from patch_algorithm.data.readers.source import Reading, Source
from patch_algorithm.data.readers.splits import Splits
from patch_algorithm.data.tokens.encoding import TokenizerSpec

__all__ = ["Conversion"]

# What decides the bytes, beside the sources and the tokenizer.
_DECIDING = (
    "row_tokens",
    "val_row_tokens",
    "val_fraction",
    "split_by_component",
    "text_field",
    "component_field",
    "eos",
    "bos",
    "special_tokens",
    "compression",
    "hub_config",
    "hub_split",
    "block_bytes",
    "unit_bytes",
    "longest_line",
    "shard_bytes",
)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to convert, into what, and how.

    Args:
        sources: Files, folders, globs, Hugging Face datasets, or source objects; see
            :func:`patch_algorithm.data.readers.find.find_sources`.
        tokenizer: A tokenizer's folder or name.
        out: The folder or URL of the dataset.
        row_tokens: Tokens in a row of the train split.
        val_row_tokens: Tokens in a row of the val and test splits.
        val_fraction: The share of documents that goes to the val split, by a hash of their text.
        split_by_component: Whether each component gets a stream of its own.
        text_field: The field or column of the text; a dot leads into an object.
        component_field: The field or column that names a document's component, likewise; ``None`` tries
            those of the Pile, SlimPajama and Dolma.
        splits: ``by-name`` gives files named for validation or test splits of their own, ``all-train`` trains
            on them. ``None`` is ``by-name`` if other files are named for training; if not, such names are an
            error.
        encoder: The library that makes the ids, which do not depend on it; see
            :func:`patch_algorithm.data.tokens.engine.choose_engine`.
        eos: Whether an EOS token ends each document.
        bos: Whether a BOS token begins each document.
        special_tokens: ``text`` encodes strings that look like special tokens as ordinary text.
        compression: ``zstd`` compresses the shards.
        on_error: ``stop`` stops at the first bad document, ``skip`` skips and counts bad documents.
        overwrite: Whether a finished dataset at ``out``, or other unfinished work, is replaced.
        workers: Processes, or units at work at a time on a Ray cluster. 0 works in this process, ``None``
            uses all cores.
        engine: ``local`` or ``ray``.
        ray_address: The Ray cluster.
        work_dir: Where unfinished work is kept. Default: next to ``out``, or in the current folder if ``out``
            is a URL.
        hub_config: The configuration of Hugging Face datasets.
        hub_split: The split of Hugging Face datasets.
        block_bytes: Text that a worker gets at a time, in bytes.
        unit_bytes: Text of a unit, in bytes.
        longest_line: Lines longer than this, in bytes, count as bad.
        shard_bytes: Largest size of a shard in bytes, before compression.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: For values out of range.
    """

    sources: tuple[str | Source, ...]
    tokenizer: str
    out: str
    row_tokens: int = 8192
    val_row_tokens: int = 2048
    val_fraction: float = 0.0
    split_by_component: bool = False
    text_field: str = "text"
    component_field: str | None = None
    splits: Splits | None = None
    encoder: Literal["auto", "tokenizers", "fast"] = "auto"
    eos: bool = True
    bos: bool = False
    special_tokens: Literal["text", "allow"] = "text"
    compression: Literal["zstd"] | None = None
    on_error: Literal["stop", "skip"] = "stop"
    overwrite: bool = False
    workers: int | None = None
    engine: Literal["local", "ray"] = "local"
    ray_address: str = "auto"
    work_dir: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    block_bytes: int = 2 * 2**20
    unit_bytes: int = 64 * 2**20
    longest_line: int = 200 * 10**6
    shard_bytes: int = 64 * 2**20
    progress: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("--source: expected at least one file, folder, pattern or dataset.")
        for name in ("row_tokens", "val_row_tokens"):
            if getattr(self, name) < 2:
                raise _bad(name, getattr(self, name), "a whole number of at least 2")
        if not 0 <= self.val_fraction < 1:
            raise _bad("val_fraction", self.val_fraction, "a number from 0 to below 1")
        if self.workers is not None and self.workers < 0:
            raise _bad("workers", self.workers, "a whole number of at least 0")
        if not 0 < self.block_bytes <= self.unit_bytes:
            raise _bad("unit_bytes", self.unit_bytes, f"at least block_bytes, {self.block_bytes}")
        if self.longest_line <= self.block_bytes:
            raise _bad("longest_line", self.longest_line, f"more than block_bytes, {self.block_bytes}")
        choices = {
            "special_tokens": ("text", "allow"),
            "compression": (None, "zstd"),
            "on_error": ("stop", "skip"),
            "engine": ("local", "ray"),
            "splits": (None, "by-name", "all-train"),
            "encoder": ("auto", "tokenizers", "fast"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise _bad(name, getattr(self, name), " or ".join(str(choice) for choice in known))
        if self.engine == "ray" and self.workers == 0:
            raise _bad("workers", 0, "at least 1 on a Ray cluster")

    @property
    def reading(self) -> Reading:
        """How sources are read."""
        return Reading(self.text_field, self.block_bytes, self.longest_line, self.component_field)

    @property
    def out_folder(self) -> Path:
        """Where the dataset goes on this machine; a link is resolved.

        Raises:
            ValueError: If links lead in a circle.
        """
        try:
            return Path(self.out).resolve()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"--out {self.out} cannot be found: {error}") from error

    def row_lengths(self, sources: Sequence[Source] = ()) -> dict[str, int]:
        """Tokens in a row of each split that there is; without the sources, of those that there may be."""
        splits = {source.split or TRAIN for source in sources} | ({VAL} if self.val_fraction else set())
        lengths = {TRAIN: self.row_tokens, VAL: self.val_row_tokens, "test": self.val_row_tokens}
        return {split: length for split, length in lengths.items() if split in splits or not sources}

    @property
    def work_folder(self) -> Path:
        """Where unfinished work is kept."""
        if self.work_dir is not None:
            return Path(self.work_dir)
        if is_url(self.out):
            return Path(f".{self.out.rstrip('/').rpartition('/')[2]}.partial")
        return self.out_folder.with_name(f".{self.out_folder.name}.partial")

    def find_sources(self) -> list[Source]:
        """The sources themselves, the beginnings of which are looked at."""
        sources = find_sources(
            self.sources,
            hub_config=self.hub_config,
            hub_split=self.hub_split,
            splits=self.splits,
            on_error=self.on_error,
        )
        if self.val_fraction and any(source.split == VAL for source in sources):
            raise ValueError(
                f"--val-fraction is {self.val_fraction}, but some sources are already in the split val. Use "
                "only one of the two, or train on those files as well, with --splits all-train."
            )
        if self.on_error == "stop":
            check_not_empty(sources, self.reading)
        if self.split_by_component:
            check_labels(sources, self.reading, stop=self.on_error == "stop")
        return sources

    @property
    def cores(self) -> int:
        """How many things this machine does at a time."""
        return usable_cores() if self.workers is None else max(1, self.workers)

    def task(self, tokenizer: TokenizerSpec) -> Task:
        """What is done with every block.

        Raises:
            ValueError: If the tokenizer lacks a token that is asked for, or a row of its tokens does not fit
                into a shard.
        """
        formats = {}
        for split, length in self.row_lengths().items():
            try:
                formats[split] = RowFormat(length, tokenizer.dtype, self.compression, self.shard_bytes)
            except ValueError as error:
                option = "--row-tokens" if split == TRAIN else "--val-row-tokens"
                raise ValueError(f"{option} is {length}: {error} Ask for shorter rows.") from error
        return Task(
            tokenizer.encoding(eos=self.eos, bos=self.bos, special_tokens=self.special_tokens),
            self.text_field,
            self.val_fraction,
            self.split_by_component,
            self.on_error == "stop",
            self.longest_line,
            self.component_field,
            formats,
            self.out if is_url(self.out) else None,
        )

    def plan(self, tokenizer: TokenizerSpec) -> dict[str, Any]:
        """All that decides the bytes, except the sources' content, which the units check."""
        names = [source if isinstance(source, str) else source.name for source in self.sources]
        return {
            "format": PLAN_FORMAT,
            "out": self.out if is_url(self.out) else self.out_folder.name,
            "sources": names,
            "tokenizer": tokenizer.fingerprint,
            "eos_id": tokenizer.eos_id,
            "bos_id": tokenizer.bos_id,
            "dtype": tokenizer.dtype,
            **{name: getattr(self, name) for name in _DECIDING},
        }


def _bad(option: str, value: object, expected: str) -> ValueError:
    return ValueError(f"--{option.replace('_', '-')} is {value!r}; expected {expected}.")
