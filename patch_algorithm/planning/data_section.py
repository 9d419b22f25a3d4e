"""The sections of the loaders: what each reads, and what the shards on disk say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patch_algorithm.data.dataset.row_lengths import cuts_long_rows, pieces_of_row
from patch_algorithm.planning.config import Values
from patch_algorithm.planning.data_on_disk import DataOnDisk, find_data

__all__ = [
    "DataSection",
    "Loader",
    "batches_per_epoch",
    "builds_own_data",
    "read_eval_loaders",
    "read_loader",
]


@dataclass(frozen=True)
class DataSection:
    """The mapping ``dataset`` of a loader.

    Attributes:
        key: Its full key.
        row_tokens: Its ``max_seq_len``: tokens of a row that the loader gives.
        local: Its folder.
        remote: Where the shards are fetched from.
        split: Its split.
        arguments: The whole mapping.
        on_disk: What the shards say of themselves, where a local folder has them.
        fault: Why they cannot be read, where something is there that cannot.
        pieces: Rows that the loader makes of each of theirs; ``None`` where it refuses them, or not known.
        refusal: What the loader ``pile`` says against the length of their rows; ``None`` where it takes them.
    """

    key: str
    row_tokens: int | None
    local: str | None
    remote: str | None
    split: str | None
    arguments: Mapping[str, Any]
    on_disk: DataOnDisk | None
    fault: str | None = None
    pieces: int | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Loader:
    """``train_loader``, or one of the eval loaders.

    Attributes:
        key: Its full key.
        name: Its name in llm-foundry's registry.
        label: What it is told by among several eval loaders.
        dataset: What it reads.
        arguments: The whole section.
    """

    key: str
    name: str | None
    label: str | None
    dataset: DataSection
    arguments: Mapping[str, Any]


def builds_own_data(top: Values) -> bool:
    """Whether ``train.py`` makes the run's data first, so that what lies there now does not count."""
    return bool(top.section("variables").get("builtin_corpus"))


def read_eval_loaders(top: Values) -> tuple[Loader, ...]:
    """Reads ``eval_loader``: one section, or a list of them.

    Raises:
        ValueError: If a value is invalid; it names the full key.
    """
    given, own = top.get("eval_loader"), builds_own_data(top)
    if not isinstance(given, list):
        return (read_loader(top.section("eval_loader"), own),) if given else ()
    sections = [Values(section, f"eval_loader[{index}]") for index, section in enumerate(given)]
    for section in sections:
        if not isinstance(section.mapping, Mapping):
            raise ValueError(f"{section.path} is {section.mapping!r}; expected a mapping of keys to values.")
    return tuple(read_loader(section, own) for section in sections)


def read_loader(values: Values, own_data: bool) -> Loader:
    """Reads the section of a loader, and what is on disk for it.

    Args:
        values: The section.
        own_data: Whether the data is made before the run, so that nothing is looked for.

    Raises:
        ValueError: If a value is invalid; it names the full key.
    """
    name = values.text("name")
    data = _dataset(values.section("dataset"), name == "pile", own_data)
    return Loader(values.path, name, values.text("label"), data, values.mapping)


def _dataset(values: Values, of_pile: bool, own_data: bool) -> DataSection:
    places = values.text("local"), values.text("remote"), values.text("split")
    asked = values.whole("max_seq_len")
    on_disk, fault = None, None
    try:
        on_disk = None if own_data else find_data(*places)
    except ValueError as error:
        fault = str(error)
    pieces, refusal = _pieces(values, asked, on_disk) if of_pile else (1, None)
    return DataSection(values.path, asked, *places, values.mapping, on_disk, fault, pieces, refusal)


def _pieces(values: Values, asked: int | None, on_disk: DataOnDisk | None) -> tuple[int | None, str | None]:
    """Rows that the loader ``pile`` makes of each row on disk, or else what it says against them."""
    cut = cuts_long_rows(values.get("long_rows"), values.get("split"), values.path)
    row_tokens = None if on_disk is None else on_disk.row_tokens
    if asked is None or row_tokens is None:
        return None, None
    try:
        return pieces_of_row(row_tokens, asked, cut, values.path), None
    except ValueError as error:
        return None, str(error)


def batches_per_epoch(loader: Loader, global_batch: int | None) -> int | None:
    """Steps in an epoch of a loader, by the rows on disk; ``None`` where they are not known."""
    on_disk = loader.dataset.on_disk
    if on_disk is None or global_batch is None or loader.dataset.arguments.get("components") is not None:
        return None
    return (
        on_disk.rows // global_batch
        if loader.arguments.get("drop_last")
        else -(-on_disk.rows // global_batch)
    )
