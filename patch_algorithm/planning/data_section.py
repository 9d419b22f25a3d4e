"""The sections of the loaders: what each reads, and what the shards on disk say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from patch_algorithm.common.arguments import is_number
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


_STREAMING = ("text", "pile")
"""Loaders whose key ``epoch_size`` is streaming's."""


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
        epoch_rows: Rows of an epoch, as the loader counts them; ``None`` where that is not known.
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
    epoch_rows: int | None = None
    refusal: str | None = None

    @property
    def is_mixture(self) -> bool:
        """Whether ``components`` weighs several of them, so that each is read another number of times."""
        several = self.on_disk is not None and len(self.on_disk.components) > 1
        return several and self.arguments.get("components") is not None

    @property
    def pass_tokens(self) -> int | None:
        """Tokens of a pass over the data; ``None`` where that is not known, or for a mixture."""
        return None if self.on_disk is None or self.is_mixture else self.on_disk.tokens


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
    data = _dataset(values.section("dataset"), name, own_data)
    return Loader(values.path, name, values.text("label"), data, values.mapping)


def batches_per_epoch(loader: Loader, global_batch: int | None) -> int | None:
    """Steps in an epoch of a loader; ``None`` where its rows are not known."""
    rows = loader.dataset.epoch_rows
    if rows is None or global_batch is None:
        return None
    return rows // global_batch if loader.arguments.get("drop_last") else -(-rows // global_batch)


def _dataset(values: Values, loader: str | None, own_data: bool) -> DataSection:
    places = values.text("local"), values.text("remote"), values.text("split")
    asked, id_bytes = values.whole("max_seq_len"), _id_bytes(values)
    on_disk, fault = None, None
    try:
        on_disk = None if own_data else find_data(*places, id_bytes)
    except OSError as error:
        fault = f"{error.filename} cannot be read: {error.strerror}"
    except ValueError as error:
        fault = str(error)
    pieces, refusal = 1, None
    if loader == "pile":
        on_disk = _chosen(values, on_disk)
        pieces, refusal = _pieces(values, asked, on_disk)
    rows = None if on_disk is None or pieces is None else on_disk.rows * pieces
    if values.get("epoch_size"):
        rows = _epoch_size(values) if loader in _STREAMING else None
    return DataSection(values.path, asked, *places, values.mapping, on_disk, fault, rows, refusal)


def _id_bytes(values: Values) -> int:
    name = values.text("token_encoding_type") or "int64"
    try:
        return np.dtype(name).itemsize
    except TypeError as error:
        raise ValueError(
            f"{values.key('token_encoding_type')} is {name!r}; expected the type of the ids, such as uint16."
        ) from error


def _chosen(values: Values, on_disk: DataOnDisk | None) -> DataOnDisk | None:
    """The rows of those components that the loader ``pile`` reads."""
    asked = values.get("components")
    if asked is None or on_disk is None or not on_disk.components:
        return on_disk
    # Imports llm-foundry, which takes its time.
    from patch_algorithm.data.loader.mixtures import weights_of_used

    return on_disk.only(weights_of_used(asked, on_disk.components, values.key("components")))


def _pieces(values: Values, asked: int | None, on_disk: DataOnDisk | None) -> tuple[int | None, str | None]:
    """Rows that the loader ``pile`` makes of each row on disk, or else what it says against them."""
    cut = cuts_long_rows(values.get("long_rows"), values.get("split"), values.path)
    row_tokens = None if on_disk is None else on_disk.row_tokens
    if asked is None or row_tokens is None:
        return None if cut else 1, None
    try:
        return pieces_of_row(row_tokens, asked, cut, values.path), None
    except ValueError as error:
        return None, str(error)


def _epoch_size(values: Values) -> int | None:
    """Rows that an epoch is asked to have, as streaming reads them: 100000 or '100k'."""
    from streaming.base.util import number_abbrev_to_int

    given = values.get("epoch_size")
    try:
        rows = int(given) if is_number(given) else number_abbrev_to_int(given)
    except (ValueError, OverflowError, AttributeError):  # the last of what is neither number nor text
        rows = -1
    if rows < 0:
        raise ValueError(
            f"{values.key('epoch_size')} is {given!r}; expected a number of rows such as 100000 or '100k'."
        )
    return rows or None
