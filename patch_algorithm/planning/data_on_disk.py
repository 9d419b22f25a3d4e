"""What the shards that a loader names say of themselves, read from a local folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from patch_algorithm.data.dataset.description import INDEX, DatasetInfo
from patch_algorithm.data.dataset.integrity import read_index
from patch_algorithm.data.dataset.remote import is_url

__all__ = ["DataOnDisk", "find_data", "id_count"]

_PARENTS = 3  # a component's stream lies two folders below dataset.json


@dataclass(frozen=True)
class DataOnDisk:
    """Rows of one split, or of one stream of it.

    Attributes:
        folder: Where the shards, or the folders of all components, lie.
        rows: Rows.
        row_tokens: Tokens in a row; ``None`` where neither description nor index say it.
        info: The ``dataset.json`` of a dataset that ``patch-level data convert`` wrote.
        info_folder: The folder that it lies in; empty where there is none.
        component_rows: Rows of each component; empty where they are not told apart.
    """

    folder: str
    rows: int
    row_tokens: int | None
    info: DatasetInfo | None = None
    info_folder: str = ""
    component_rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components whose rows these are; empty where they are not told apart."""
        return tuple(self.component_rows)

    def only(self, components: Collection[str]) -> DataOnDisk:
        """The rows of some of the components."""
        kept = {name: rows for name, rows in self.component_rows.items() if name in components}
        return replace(self, rows=sum(kept.values()), component_rows=kept)

    @property
    def tokens(self) -> int | None:
        """Tokens in all rows."""
        return None if self.row_tokens is None else self.rows * self.row_tokens


def id_count(info: DatasetInfo, folder: str) -> int:
    """How many entries an embedding needs for the ids of a dataset: the largest id and one.

    Where ids have holes that is more than the tokenizer's entries.

    Args:
        info: The dataset's description.
        folder: The folder that it lies in; where no tokenizer is in it, its entries are counted.
    """
    from tokenizers import Tokenizer

    file = Path(folder) / "tokenizer" / "tokenizer.json"
    if not file.is_file():
        return info.tokenizer.vocab_size
    # A bare Exception is what the library raises for a file that it cannot read.
    try:
        ids = Tokenizer.from_file(str(file)).get_vocab().values()
    except Exception:
        return info.tokenizer.vocab_size
    return max(info.tokenizer.vocab_size, max(ids, default=-1) + 1)


def find_data(
    local: str | None, remote: str | None, split: str | None, id_bytes: int = 8
) -> DataOnDisk | None:
    """Looks for a dataset that can be read without a network.

    Args:
        local: The loader's ``local``.
        remote: Its ``remote``, which is looked at first if it is a folder of this machine.
        split: Its ``split``.
        id_bytes: Bytes of an id in a column of bytes.

    Returns:
        What there is; ``None`` where no folder holds a description or an index.

    Raises:
        ValueError: If there is a description or an index that cannot be read.
    """
    for root in (remote, local):
        if root and not is_url(root) and (found := _in_folder(Path(root), split or "", id_bytes)) is not None:
            return found
    return None


def _in_folder(root: Path, split: str, id_bytes: int) -> DataOnDisk | None:
    folder, path = Path(os.path.abspath(root)), split
    for _ in range(_PARENTS):
        if (info := DatasetInfo.find(folder)) is not None and (found := _described(folder, info, path)):
            return found
        path = f"{folder.name}/{path}".rstrip("/")
        folder = folder.parent
    return _indexed(root, split, id_bytes)


def _described(folder: Path, info: DatasetInfo, path: str) -> DataOnDisk | None:
    streams = [s for s in info.streams if s.rows and (s.path == path or s.split == path)]
    if not streams:
        return None
    lengths = {stream.row_tokens for stream in streams}
    return DataOnDisk(
        folder=str(folder / path),
        rows=sum(stream.rows for stream in streams),
        row_tokens=lengths.pop() if len(lengths) == 1 else None,
        info=info,
        info_folder=str(folder),
        component_rows={stream.component: stream.rows for stream in streams if stream.component is not None},
    )


def _indexed(root: Path, split: str, id_bytes: int) -> DataOnDisk | None:
    if not (root / split / INDEX).is_file():
        return None
    shards = read_index(root, split or ".")
    rows = sum(shard["samples"] for shard in shards)
    return DataOnDisk(str(root / split), rows, _row_tokens(root / split, shards, id_bytes))


def _row_tokens(folder: Path, shards: list[dict[str, Any]], id_bytes: int) -> int | None:
    """Tokens in the first row, from the index, or else from the row itself."""
    if not shards or "tokens" not in shards[0].get("column_names", ()):
        return None
    from streaming.base.format import reader_from_json

    try:
        tokens = reader_from_json(str(folder), None, dict(shards[0]))[0]["tokens"]
    except (OSError, KeyError, ValueError):  # compressed, or not here
        return None
    # llm-foundry's older converters wrote bytes.
    return len(tokens) // id_bytes if isinstance(tokens, bytes) else len(tokens)
