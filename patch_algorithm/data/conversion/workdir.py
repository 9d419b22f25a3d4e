"""The folder in which a conversion keeps what it has done, so that it can be killed at any moment.

::

    plan.json                   what decides the bytes that come out
    lock                        held while a conversion works here
    units/00000/000000.tokens   tokens of a unit of work of source 0, stream by stream
    units/00000/000000.json     its record; the unit is finished when this is there
    units/00000/end.json        how many units the source has; written at its end
    data/                       the dataset, before it is renamed to where it shall lie
    uploaded/                   a mark for each shard that is in an object store
    publishing                  the plan once more; the dataset is finished, and only its place is wanting
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from patch_algorithm.common.files import write_whole
from patch_algorithm.data.conversion.documents import BadDocument, Counts
from patch_algorithm.data.readers.blocks import Position

__all__ = [
    "ConversionError",
    "SourceEnd",
    "TokenRun",
    "UnitRecord",
    "WorkDir",
    "no_room_told",
]

_PLAN_KEYS = {"format", "out", "sources", "tokenizer"}
_FOLDERS = ("units", "uploaded", "data", "replaced", "withdrawn", "tokenizer")
# Without a plan there is nothing else of ours.
_BESIDE_PLAN = {"lock", "publishing", "plan.json.partial"}

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ConversionError(ValueError):
    """A conversion that has stopped and can be continued."""


@dataclass(frozen=True)
class TokenRun:
    """A run of one stream's tokens in a unit's file.

    Attributes:
        component: ``None`` where all components share a stream.
        split: ``train`` or ``val``.
        start: Tokens before it in the file.
        tokens: Its length.
    """

    component: str | None
    split: str
    start: int
    tokens: int


@dataclass(frozen=True)
class UnitRecord:
    """What is known of a finished unit.

    Attributes:
        start: Where it begins in its source.
        end: Where it ends.
        stamp: The source's stamp when it was read.
        digest: Hash of its text, in hexadecimal digits.
        read_bytes: Bytes of the file that were read for it.
        counts: By (component, split).
        runs: The runs of tokens in its file, in order.
        skipped: Bad documents by reason.
        examples: The first of them.
    """

    start: Position
    end: Position
    stamp: dict[str, Any]
    digest: str
    read_bytes: int
    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    runs: list[TokenRun] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[BadDocument] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        counts = [[*key, *values] for key, values in sorted(self.counts.items())]
        return {**asdict(self), "counts": counts}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> UnitRecord:
        """As it was written."""
        return cls(
            start=Position(*value["start"]),
            end=Position(*value["end"]),
            stamp=value["stamp"],
            digest=value["digest"],
            read_bytes=value["read_bytes"],
            counts={(name, split): Counts(*numbers) for name, split, *numbers in value["counts"]},
            runs=[TokenRun(**run) for run in value["runs"]],
            skipped=value["skipped"],
            examples=[BadDocument(*example) for example in value["examples"]],
        )


@dataclass(frozen=True)
class SourceEnd:
    """The end of a source.

    Attributes:
        units: How many units it has.
        stamp: The source's stamp when it was read.
        reason: Why it could not be read further, in a few words, if that was not its proper end.
        detail: What exactly.
        documents: How many documents are lost with it, as far as is known.
    """

    units: int
    stamp: dict[str, Any]
    reason: str | None = None
    detail: str = ""
    documents: int = 1


class WorkDir:
    """The folder in which one conversion keeps what it has done.

    Args:
        root: The folder.
        dtype: Of the tokens.
    """

    def __init__(self, root: Path, dtype: str) -> None:
        self.root = root
        self.data = root / "data"
        self._dtype = np.dtype(dtype).newbyteorder("<")

    def check_ours(self) -> None:
        """Makes sure that nobody else keeps things here, which our own would be mixed with.

        Raises:
            ValueError: If somebody does.
        """
        if not self.root.exists() or _is_plan(read_json(self.root / "plan.json")):
            return
        if not self.root.is_dir() or {path.name for path in self.root.iterdir()} - _BESIDE_PLAN:
            raise ValueError(
                f"unfinished work would be kept in {self.root}, where something else is; name a folder that "
                "is empty or not there yet with --work-dir."
            )

    def is_for(self, out: str) -> bool:
        """Whether there is unfinished work whose dataset shall lie at this URL."""
        plan = read_json(self.root / "plan.json") or read_json(self.root / "publishing")
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
                f"another conversion is at work in {self.root}; let it finish, or end it first."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def take_plan(self, plan: Mapping[str, Any], anew: bool) -> bool:
        """Writes the plan, or finds that the work is under way by the same one.

        Args:
            plan: What decides the bytes that come out.
            anew: Whether work by another plan is thrown away.

        Returns:
            Whether there is work to continue.

        Raises:
            ConversionError: If there is work by another plan.
        """
        found = read_json(self.root / "plan.json") or read_json(self.root / "publishing")
        if found == plan:
            return True
        if _is_plan(found) and not anew:
            differences = [
                f"{key} is {_short(found.get(key))} there and {_short(plan.get(key))} here"
                for key in sorted({*found, *plan})
                if found.get(key) != plan.get(key)
            ]
            raise ConversionError(
                f"{self.root} holds the unfinished work of another conversion: {'; '.join(differences)}. "
                "Repeat the command that began it to continue it, or add --overwrite to throw it away."
            )
        (self.root / "publishing").unlink(missing_ok=True)
        self.drop_data()
        shutil.rmtree(self.root / "units", ignore_errors=True)
        write_whole(self.root / "plan.json", dump_json(plan))
        return False

    def records(self, source: int) -> dict[int, UnitRecord]:
        """The finished units of a source by their numbers."""
        found = {}
        for path in sorted(self._folder(source).glob("[0-9]*.json")):
            value = read_json(path)
            if value is None:
                continue
            record = UnitRecord.from_json(value)
            tokens = path.with_suffix(".tokens")
            expected = sum(run.tokens for run in record.runs) * self._dtype.itemsize
            # After a loss of power a file can be shorter than what was written to it.
            if tokens.is_file() and tokens.stat().st_size == expected:
                found[int(path.stem)] = record
        return found

    def end(self, source: int) -> SourceEnd | None:
        """The end of a source, if it has been reached."""
        value = read_json(self._folder(source) / "end.json")
        return SourceEnd(**value) if value is not None else None

    def commit(self, source: int, unit: int, record: UnitRecord, tokens: Sequence[np.ndarray]) -> None:
        """Keeps a finished unit; its tokens are written run by run."""
        path = self.tokens_path(source, unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, *(np.ascontiguousarray(run, dtype=self._dtype).data for run in tokens))
        self.commit_record(source, unit, record)

    def commit_record(self, source: int, unit: int, record: UnitRecord) -> None:
        """Keeps the record of a unit whose tokens are there."""
        write_whole(self.tokens_path(source, unit).with_suffix(".json"), dump_json(record.to_json()))

    def commit_end(self, source: int, end: SourceEnd) -> None:
        """Keeps the end of a source."""
        folder = self._folder(source)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "end.json", dump_json(asdict(end)))

    def tokens_path(self, source: int, unit: int) -> Path:
        """The file with a unit's tokens."""
        return self._folder(source) / f"{unit:06d}.tokens"

    def drop_data(self) -> None:
        """Removes what was packed of units that have changed since."""
        for name in ("uploaded", "data"):
            if (self.root / name).exists():
                # Half removed, it would be taken for whole by the command that began it.
                aside = self.root / f"{name}.partial"
                shutil.rmtree(aside, ignore_errors=True)
                (self.root / name).rename(aside)
                shutil.rmtree(aside, ignore_errors=True)

    def is_publishing(self) -> bool:
        """Whether the dataset is finished, and perhaps at its place already."""
        return _is_plan(read_json(self.root / "publishing"))

    def mark_publishing(self) -> None:
        """Notes that the dataset is finished and only its place is wanting."""
        if not self.is_publishing():
            write_whole(self.root / "publishing", (self.root / "plan.json").read_bytes())

    def publish(self, out: Path, replaces: bool) -> None:
        """Renames the finished dataset to where it shall lie; then cleans up.

        Args:
            out: Where it shall lie.
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
        """Removes all that is ours, last what tells that the conversion was finished; then the folder."""
        for name in _FOLDERS:
            for path in (self.root / name, self.root / f"{name}.partial"):
                shutil.rmtree(path, ignore_errors=True)
        for name in ("plan.json.partial", "publishing.partial", "plan.json", "lock", "publishing"):
            (self.root / name).unlink(missing_ok=True)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Removes the folder, which is also what a conversion leaves that is killed in its last moment."""
        # A link, or the current folder, is left standing.
        with suppress(OSError):
            self.root.rmdir()

    def _folder(self, source: int) -> Path:
        return self.root / "units" / f"{source:05d}"


@contextmanager
def no_room_told(folder: Path) -> Iterator[None]:
    """Says in plain words that a disk is full.

    Raises:
        ConversionError: In place of the error of a write that found no room.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ConversionError(
            f"no room is left to write in {folder} ({error.strerror}). What is finished is kept: make room "
            "and repeat the command to continue."
        ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; ``None`` where there is no whole one."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def dump_json(value: Any) -> bytes:
    """JSON to be read by people as well."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _is_plan(value: object) -> bool:
    return isinstance(value, Mapping) and value.keys() >= _PLAN_KEYS


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
