"""A stream of shards that checks what it fetches, and with ``verify`` what is there already.

streaming compares a shard that it has downloaded with the checksum in the index, if it is told to, and
on the first mismatch raises in a background thread: that epoch ends early, other workers wait for ever
for the shard, and the next start finds the damaged file in the cache and trusts it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming import Stream
from streaming.base.format import FileInfo, Reader
from streaming.base.hashing import get_hash
from streaming.base.world import World

from patch_algorithm.data.dataset.remote import is_url
from patch_algorithm.data.loader.rows import cut_shards

__all__ = ["ShardError", "VerifiedStream"]

log = logging.getLogger(__name__)


class ShardError(RuntimeError):
    """A shard that is not available, or not as the index describes it."""


class VerifiedStream(Stream):
    """A stream that fetches a damaged shard again, and refuses it by name if that does not help.

    Every shard that arrives is compared with a checksum of the index, if the index has any, and with the
    size there. One that differs is removed from the cache and fetched again, ``download_retry`` times.
    Files that are there at start, of the dataset itself or in the cache from an earlier run, are compared
    by their size, or with ``verify`` by their checksum.

    A shard that is not available is no error while it is fetched ahead of time, in a thread whose errors
    are lost: :meth:`raise_failure` raises the error when a row of the shard is read.

    Args:
        key: The configuration key of the stream, for messages.
        rows: Rows that the dataset says it has; ``None`` where it says nothing.
        verify: Whether files that are there at start are compared by checksum, too, and not by size alone.
        **kwargs: As for :class:`streaming.Stream`. ``validate_hash`` defaults to ``sha1`` or else the
            first algorithm that the index has for every file.
    """

    def __init__(self, *, key: str, rows: int | None = None, verify: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.key = key
        self._rows = rows
        self._verify = verify
        self._cut_to: tuple[int, np.dtype[Any]] | None = None
        self._failures: dict[str, str] = {}

    def cut_rows(self, length: int, dtype: np.dtype[Any]) -> None:
        """Cuts longer rows into rows of ``length`` tokens; ``dtype`` is that of a column of bytes."""
        self._cut_to = length, dtype

    @property
    def is_cache(self) -> bool:
        """Whether ``local`` holds copies; otherwise it is the dataset itself and nothing is removed."""
        if self.remote is None:
            return False
        # A folder can be named in several ways, and what is taken for a cache may be removed.
        return is_url(self.remote) or os.path.realpath(self.remote) != os.path.realpath(self.local)

    @property
    def place(self) -> str:
        """Where the shards come from."""
        return os.path.join(self.remote or self.local, self.split)

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """Reads the index and chooses what shards are compared with.

        Raises:
            ValueError: If the index is that of another dataset, or ``validate_hash`` names an algorithm
                that it lacks.
        """
        shards = super().get_shards(world, allow_unsafe_types)
        rows = sum(len(shard) for shard in shards)
        if self._rows is not None and rows != self._rows:
            raise ValueError(
                f"{self.key}: the index in {os.path.join(self.local, self.split)} lists {rows} rows, but "
                f"{self.place} has {self._rows}. The dataset was rewritten, or the folder is the cache "
                "of another one: name another folder as local, or empty this one."
            )
        hashes = [set(info.hashes) for shard in shards for info in _files(shard)]
        common = sorted(set.intersection(*hashes)) if hashes else []
        if self.validate_hash is None:
            self.validate_hash = "sha1" if "sha1" in common else next(iter(common), None)
        elif self.validate_hash not in common:
            raise ValueError(
                f"{self.key}.validate_hash is {self.validate_hash!r}; the index of the dataset has "
                f"{', '.join(common) or 'no checksums'}."
            )
        if self._verify and not self.validate_hash:
            raise ValueError(f"{self.key}.verify is true, but the index of {self.place} has no checksums.")
        return cut_shards(shards, *self._cut_to, f"{self.key}: {self.place}") if self._cut_to else shards

    def set_up_local(self, shards: list[Reader], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """Checks the files that exist already; damaged ones are fetched again.

        By size, and with ``verify`` by checksum.

        Raises:
            ShardError: If there is nowhere to fetch them from.
        """
        for shard in shards:
            for path, reason in self._damaged(shard, by_hash=self._verify):
                if not self.is_cache:
                    raise ShardError(
                        f"{self.key}: {path} is damaged: {reason}. Restore it; `patch-level data info` "
                        "checks every file of a dataset."
                    )
                log.warning("%s: %s is damaged (%s); it will be fetched again.", self.key, path, reason)
                path.unlink()
        super().set_up_local(shards, cache_usage_per_shard)

    def prepare_shard(self, shard: Reader) -> int:
        """Makes a shard available, if it can be fetched as the index describes it.

        Returns:
            The change in the cache's size in bytes; 0 if the shard is not available.
        """
        name = shard.file_pairs[0][0].basename
        if name in self._failures:
            return 0
        fetches = 1 + self.download_retry if self.is_cache else 1
        failure = ""
        for fetch in range(1, fetches + 1):
            delta, failure, again = self._try_to_prepare(shard)
            if not failure:
                return delta
            if not again:
                break
            log.warning("%s: %s, fetched from %s %d times.", self.key, failure, self.place, fetch)
        self._failures[name] = failure
        return 0

    def raise_failure(self, shard: Reader) -> None:
        """Raises what kept a shard from being available, if anything did.

        Raises:
            ShardError: With the shard, where it comes from, and what is wrong with it.
        """
        name = shard.file_pairs[0][0].basename
        if name in self._failures:
            raise ShardError(
                f"{self.key}: {name} of {self.place} is not available: {self._failures[name]}. None of its "
                "rows is used. Write the shard again; if the dataset itself was rewritten, empty its cache "
                f"{os.path.join(self.local, self.split)}."
            )

    def _try_to_prepare(self, shard: Reader) -> tuple[int, str, bool]:
        """The change in the cache's size, what went wrong, and whether fetching again may help."""
        delta, failure = 0, ""
        try:
            delta = super().prepare_shard(shard)
        # Whatever a store's client raises has to get from here to where the row is wanted.
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        damaged = list(self._damaged(shard, by_hash=bool(failure)))
        if damaged:
            failure = "; ".join(f"{path.name} has {reason}" for path, reason in damaged)
            if self.is_cache:
                for path, _ in damaged:
                    path.unlink(missing_ok=True)
        return delta, failure, bool(damaged)

    def _damaged(self, shard: Reader, by_hash: bool) -> Iterator[tuple[Path, str]]:
        for info in _files(shard):
            path = Path(self.local, self.split, info.basename)
            if not path.is_file():
                continue
            if (size := path.stat().st_size) != info.bytes:
                yield path, f"{size} bytes instead of {info.bytes}"
            elif by_hash and self.validate_hash:
                found = get_hash(self.validate_hash, path.read_bytes())
                if found != (expected := info.hashes[self.validate_hash]):
                    yield path, f"{self.validate_hash} {found} instead of {expected}"


def _files(shard: Reader) -> list[FileInfo]:
    return [info for pair in shard.file_pairs for info in pair if info is not None]
