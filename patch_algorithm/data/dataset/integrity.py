"""Whether the files of a dataset are what its indexes record."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_algorithm.data.dataset.description import INDEX, DatasetInfo, local_copy, read_text

__all__ = ["ShardFault", "check_file", "check_shards", "read_index"]

_SLICE = 1 << 22  # bytes


@dataclass(frozen=True)
class ShardFault:
    """A file that is not what the index says.

    Attributes:
        path: The file's path within the dataset.
        reason: ``missing``, ``has N bytes, not M``, or ``corrupted``.
    """

    path: str
    reason: str


def check_shards(folder: str | Path, info: DatasetInfo | None = None) -> list[ShardFault]:
    """Compares every shard with the size and the SHA-1 that its index records.

    Args:
        folder: The dataset, local or a URL, whose shards are then downloaded one by one.
        info: Its ``dataset.json``, if it has been read already.

    Returns:
        The files that differ, in order; empty where all is well.

    Raises:
        ValueError: If there is no dataset, or an object store cannot be read.
    """
    info = info or DatasetInfo.read(folder)
    faults: list[ShardFault] = []
    for stream in info.streams:
        if not stream.rows:
            continue
        index = f"{stream.path}/{INDEX}"
        try:
            shards = read_index(folder, stream.path)
        except FileNotFoundError:
            faults.append(ShardFault(index, "missing"))
            continue
        except ValueError:
            faults.append(ShardFault(index, "corrupted"))
            continue
        rows = sum(shard["samples"] for shard in shards)
        if rows != stream.rows:
            faults.append(ShardFault(index, f"has {rows:,} rows, not {stream.rows:,}"))
        for shard in shards:
            if fault := check_file(folder, stream.path, shard["zip_data"] or shard["raw_data"]):
                faults.append(fault)
    return faults


def read_index(folder: str | Path, stream: str) -> list[dict[str, Any]]:
    """The shards that a stream's ``index.json`` lists.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If it cannot be read.
    """
    try:
        shards = json.loads(read_text(folder, f"{stream}/{INDEX}"))["shards"]
        if all(isinstance(s["samples"], int) and _is_file(s["zip_data"] or s["raw_data"]) for s in shards):
            return shards
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{stream}/{INDEX} in {folder} cannot be read: {error!r}.") from error
    raise ValueError(f"{stream}/{INDEX} in {folder} is not an index of MDS shards.")


def _is_file(entry: Mapping[str, Any]) -> bool:
    return (
        isinstance(entry["basename"], str)
        and isinstance(entry["bytes"], int)
        and isinstance(entry["hashes"], dict)
    )


def check_file(folder: str | Path, stream: str, expected: Mapping[str, Any]) -> ShardFault | None:
    """Compares a shard with what the index records of its file, ``zip_data`` or ``raw_data``."""
    name = f"{stream}/{expected['basename']}"
    sha1, size = hashlib.sha1(usedforsecurity=False), 0
    with tempfile.TemporaryDirectory() as aside:
        try:
            with local_copy(folder, name, aside).open("rb") as file:
                while data := file.read(_SLICE):
                    sha1.update(data)
                    size += len(data)
        except FileNotFoundError:
            return ShardFault(name, "missing")
    if size != expected["bytes"]:
        return ShardFault(name, f"has {size:,} bytes, not {expected['bytes']:,}")
    if sha1.hexdigest() != expected["hashes"].get("sha1"):
        return ShardFault(name, "corrupted")
    return None
