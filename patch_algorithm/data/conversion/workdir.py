"""The folder in which a conversion keeps what it has done, so that it can be killed at any moment.

::

    plan.json                   what decides the bytes that come out
    lock                        held while a conversion works here
    data/                       the dataset, before it is renamed to its place
    data/train/UNIT/            a unit's shards of the stream `train`; removed once they are uploaded
    units/UNIT.tail             the tokens that fill no shard of it, stream by stream
    units/UNIT.json             its record; the unit is finished when this is there
    publishing                  the plan again; the dataset is finished and only has to be moved
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from patch_algorithm.common.files import write_whole
from patch_algorithm.data.conversion.records import ConversionError, UnitRecord

__all__ = ["PLAN_FORMAT", "WorkDir", "full_disk_explained"]

PLAN_FORMAT = 2
"""Of the work folder; 1 kept the tokens of all units until the end."""

_PLAN_KEYS = {"format", "out", "tokenizer"}
_FOLDERS = ("units", "data", "replaced", "withdrawn", "tokenizer", "uploaded")  # the last by version 1
# Without a plan there is nothing else of ours.
_BESIDE_PLAN = {"lock", "publishing", "plan.json.partial"}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class WorkDir:
    """The folder in which one conversion keeps what it has done.

    Args:
        root: The folder.
        dtype: Of the tokens.
    """

    def __init__(self, root: Path, dtype: str) -> None:
        self.root = root
        self.data = root / "data"
        self._units = root / "units"
        self._dtype = np.dtype(dtype)

    def check_ours(self) -> None:
        """Makes sure that the folder holds nothing but work of a conversion.

        Raises:
            ValueError: If it holds something else.
        """
        if not self.root.exists() or _is_plan(_read_json(self.root / "plan.json")):
            return
        if not self.root.is_dir() or {path.name for path in self.root.iterdir()} - _BESIDE_PLAN:
            raise ValueError(
                f"unfinished work would be kept in {self.root}, but that holds something else; name an empty "
                "or new folder with --work-dir."
            )

    def is_for(self, out: str) -> bool:
        """Whether there is unfinished work on a dataset for this URL."""
        plan = self._plan()
        return _is_plan(plan) and plan["out"] == out

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other conversions out.

        Raises:
            ConversionError: If another one is in.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ConversionError(
                f"another conversion is running in {self.root}; let it finish, or stop it first."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def take_plan(self, plan: Mapping[str, Any], overwrite: bool) -> bool:
        """Writes the plan, or finds unfinished work with the same plan.

        Args:
            plan: What decides the bytes that come out.
            overwrite: Whether work with another plan is discarded.

        Returns:
            Whether there is work to continue.

        Raises:
            ConversionError: If there is work with another plan.
        """
        found = self._plan()
        if found == plan:
            return True
        if _is_plan(found) and not overwrite:
            if found["format"] != PLAN_FORMAT:
                raise ConversionError(
                    f"{self.root} holds work that another version of patch-algorithm began and this one "
                    "cannot continue. Finish it with that version, or add --overwrite to discard it."
                )
            differences = [
                f"{key} is {_short(found.get(key))} there and {_short(plan.get(key))} here"
                for key in sorted({*found, *plan})
                if found.get(key) != plan.get(key)
            ]
            raise ConversionError(
                f"{self.root} holds the unfinished work of another conversion: {'; '.join(differences)}. "
                "Repeat the command that began it to continue it, or add --overwrite to discard it."
            )
        (self.root / "publishing").unlink(missing_ok=True)
        # Half removed, it would be taken for whole by the command that began it.
        for name in ("units", "data"):
            if (self.root / name).exists():
                aside = self.root / f"{name}.partial"
                shutil.rmtree(aside, ignore_errors=True)
                (self.root / name).rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
        write_whole(self.root / "plan.json", _dump_json(plan))
        return False

    def _plan(self) -> Any:
        return _read_json(self.root / "plan.json") or _read_json(self.root / "publishing")

    def records(self) -> dict[str, UnitRecord]:
        """The finished units by their names; those whose files are not whole are left out."""
        found = {}
        for path in self._units.glob("*.json"):
            value = _read_json(path)
            if value is not None and self._is_whole(path.stem, record := UnitRecord.from_json(value)):
                found[path.stem] = record
        return found

    def _is_whole(self, unit: str, record: UnitRecord) -> bool:
        # After a loss of power a file can be shorter than what was written to it.
        sizes = {self._tail(unit): sum(part.tail for part in record.parts) * self._dtype.itemsize}
        for part in () if record.uploaded else record.parts:
            sizes |= {self.data / file: size for file, size in part.files()}
        return all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())

    def clear(self, unit: str) -> None:
        """Removes what is there of a unit that is done again, its record first."""
        (self._units / f"{unit}.json").unlink(missing_ok=True)
        self._tail(unit).unlink(missing_ok=True)
        for folder in (*self.data.glob(f"*/{unit}"), *self.data.glob(f"*/*/{unit}")):
            shutil.rmtree(folder)

    def commit(self, unit: str, record: UnitRecord, tails: Sequence[np.ndarray]) -> None:
        """Makes a unit final, whose shards are in their places."""
        self._units.mkdir(parents=True, exist_ok=True)
        write_whole(self._tail(unit), *(np.ascontiguousarray(tail).data for tail in tails))
        self.commit_record(unit, record)

    def commit_record(self, unit: str, record: UnitRecord) -> None:
        """Keeps the record of a unit whose tail is there."""
        # What a loss of power leaves of it is no JSON, so that the unit is done again; and there may be many.
        write_whole(self._units / f"{unit}.json", _dump_json(record.to_json()), lasting=False)

    def tail(self, unit: str, start: int = 0, tokens: int = -1) -> np.ndarray:
        """Tokens ``[start, start + tokens)`` of a unit's tail; by default all."""
        return np.fromfile(self._tail(unit), self._dtype, tokens, offset=start * self._dtype.itemsize)

    def _tail(self, unit: str) -> Path:
        return self._units / f"{unit}.tail"

    def is_publishing(self) -> bool:
        """Whether the dataset is finished, and perhaps at its place already."""
        return _is_plan(_read_json(self.root / "publishing"))

    def mark_publishing(self) -> None:
        """Notes that the dataset is finished and only has to be moved to its place."""
        if not self.is_publishing():
            write_whole(self.root / "publishing", (self.root / "plan.json").read_bytes())

    def publish(self, out: Path, replaces: bool) -> None:
        """Renames the finished dataset to its place; then cleans up.

        Args:
            out: Its place.
            replaces: Whether an older one is there; otherwise there is at most an empty folder.
        """
        self.mark_publishing()
        if self.data.is_dir():
            if replaces:
                shutil.rmtree(self.root / "replaced", ignore_errors=True)
                out.rename(self.root / "replaced")
            out.parent.mkdir(parents=True, exist_ok=True)
            self.data.rename(out)
        self.remove()

    def remove(self) -> None:
        """Removes all files of the conversion, the mark that it was finished last; then the folder."""
        for name in _FOLDERS:
            for path in (self.root / name, self.root / f"{name}.partial"):
                shutil.rmtree(path, ignore_errors=True)
        for name in ("plan.json.partial", "publishing.partial", "plan.json", "lock", "publishing"):
            (self.root / name).unlink(missing_ok=True)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Removes the folder; a conversion that is killed at the very end leaves it behind, too."""
        # A link, or the current folder, is left standing.
        with suppress(OSError):
            self.root.rmdir()


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Explains the error of a write to a full disk.

    Raises:
        ConversionError: Instead of the error of the write.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ConversionError(
            f"no space is left in {folder} ({error.strerror}). Finished work is kept: free some space "
            "and repeat the command to continue."
        ) from error


def _read_json(path: Path) -> Any:
    """The content of a JSON file; ``None`` where there is no whole one."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _dump_json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def _is_plan(value: object) -> bool:
    return isinstance(value, Mapping) and value.keys() >= _PLAN_KEYS


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
