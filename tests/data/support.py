"""Small corpora in the Pile's format, and conversions of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

# What loading a tokenizer imports: the children below are forked with it.
from transformers.models.auto import tokenization_auto  # noqa: F401

from patch_algorithm.data.conversion.conversion import ConversionError, convert
from patch_algorithm.data.conversion.options import Conversion
from patch_algorithm.data.conversion.report import Report
from patch_algorithm.data.conversion.workdir import WorkDir
from patch_algorithm.data.corpus.tokenizer import END_OF_TEXT, train_tokenizer
from patch_algorithm.data.tokens.encoding import load_tokenizer

COMPONENTS = ("ArXiv", "Pile-CC", "Wikipedia (en)", None)
ROW, VAL_ROW = 32, 8
DOCUMENTS = 480  # of the fixture `pile`

_WORDS = (
    "the",
    "of",
    "model",
    "naïve",
    "tokens",
    "π",
    "data",
    "house",
    "\n",
    "{x}",
    "日本",
    "😀",
    "12",
    "end.",
)


def documents(number: int = 240, seed: int = 0) -> list[dict[str, Any]]:
    """Documents of a few words to a few hundred; one mentions the end-of-text token, one is empty."""
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    for index in range(number):
        words = draw.choices(_WORDS, k=draw.choice((3, 30, 300)))
        text = f"{index} {' '.join(words)}"
        if index % 50 == 7:
            text += f" {END_OF_TEXT} and on"
        if index == 11:
            text = ""
        component = COMPONENTS[draw.randrange(4)]
        found.append({"text": text, "meta": {"pile_set_name": component} if component else {}})
    return found


def lines(found: Iterable[Any]) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(document).encode() + b"\n" for document in found)


def make_tokenizer(folder: Path, vocab_size: int = 330) -> Path:
    """A byte-level tokenizer of a few merges."""
    train_tokenizer([document["text"] for document in documents(60, seed=1)], vocab_size, folder)
    return folder


def options(sources: Sequence[str | Path], tokenizer: Path, out: Path, **changes: Any) -> Conversion:
    """A conversion in this process, cut so that small data make many blocks, units and shards."""
    values: dict[str, Any] = {
        "row_tokens": ROW,
        "val_row_tokens": VAL_ROW,
        "workers": 0,
        "block_bytes": BLOCK,
        "unit_bytes": UNIT,
        "shard_bytes": SHARD,
        "longest_line": LONGEST,
        "progress": False,
    }
    return Conversion(
        sources=tuple(map(str, sources)), tokenizer=str(tokenizer), out=str(out), **(values | changes)
    )


def run(sources: Sequence[str | Path], tokenizer: Path, out: Path, **changes: Any) -> Report:
    """Converts as :func:`options` says."""
    return convert(options(sources, tokenizer, out, **changes))


def partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def finished_documents(out: Path) -> int:
    """Documents in the units that a conversion has finished so far."""
    records = WorkDir(partial(out), "uint16").records()
    return sum(record.tally.total.documents for record in records.values())


def stopped_half_way(pile: list[Path], tokenizer: Path, out: Path, **changes: Any) -> None:
    """Leaves all of the first file and a bad line in the second."""
    bad = out.parent / "bad.jsonl"
    good = pile[1].read_bytes()
    bad.write_bytes(good + b"{\n")
    with pytest.raises(ConversionError, match="not JSON"):
        run([pile[0], bad], tokenizer, out, val_fraction=0.1, **changes)


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stream_tokens(out: Path, path: str) -> np.ndarray:
    """The rows of a stream, joined; that stock streaming reads them is shown elsewhere."""
    tokens = []
    for shard in json.loads((out / path / "index.json").read_text())["shards"]:
        packed = shard["zip_data"] or shard["raw_data"]
        data = (out / path / packed["basename"]).read_bytes()
        if shard["zip_data"]:
            data = zstandard.decompress(data)
        dtype = shard["column_encodings"][0].split(":")[1]
        tokens.append(np.frombuffer(data[-shard["samples"] * shard["column_sizes"][0] :], dtype))
    return np.concatenate(tokens)


@cache
def _loaded(tokenizer: Path) -> Any:
    return load_tokenizer(str(tokenizer)).tokenizer


def expected_ids(found: Iterable[dict[str, Any]], tokenizer: Path) -> list[list[int]]:
    """What the tokenizer itself makes of each document, with EOS."""
    loaded = _loaded(tokenizer)
    encoded = loaded([d["text"] for d in found], add_special_tokens=False, split_special_tokens=True)
    return [[*ids, loaded.eos_token_id] for ids in encoded["input_ids"]]


BLOCK, UNIT, SHARD, LONGEST = 1 << 12, 1 << 14, 1 << 14, 1 << 16


def units_of(source: bytes) -> list[list[bytes]]:
    """The lines of each unit: the fewest blocks that make it up, of the fewest lines that make up a block."""
    units: list[list[bytes]] = []
    block, unit = 0, 0
    for line in source.splitlines(keepends=True):
        line = line if len(line) <= LONGEST else b"\n"
        if unit >= UNIT or not units:
            units.append([])
            unit = 0
        units[-1].append(line)
        block += len(line)
        if block >= BLOCK:
            unit, block = unit + block, 0
    return units


def expected_tokens(
    sources: Iterable[bytes],
    tokenizer: Path,
    out: Path,
    path: str,
    keep: Callable[[dict[str, Any]], bool] = lambda document: True,
    shard_bytes: int = SHARD,
) -> list[int]:
    """The tokens of a stream, by the rule that is documented: each unit's rows, then those of all tails.

    Args:
        sources: The content of each file of lines.
        tokenizer: The tokenizer.
        out: The dataset, which says how long rows are.
        path: The stream.
        keep: Whether a document belongs to the stream.
        shard_bytes: Most bytes of a shard.
    """
    info = json.loads((out / "dataset.json").read_text())
    row = next(stream["row_tokens"] for stream in info["streams"] if stream["path"] == path)
    shard = json.loads((out / path / "index.json").read_text())["shards"][0]
    size = shard["column_sizes"][0]
    header = shard["raw_data"]["bytes"] - shard["samples"] * (size + 4)
    heads: list[int] = []
    tails: list[int] = []
    for unit in (unit for source in sources for unit in units_of(source)):
        found = [document for document in map(_document, unit) if document is not None and keep(document)]
        ids = [token for own in expected_ids(found, tokenizer) for token in own] if found else []
        rows = len(ids) // row
        for most in (rows, rows % ((shard_bytes - header) // (size + 4))):
            if most * size < shard_bytes // 16:
                rows -= most
        heads += ids[: max(0, rows) * row]
        tails += ids[max(0, rows) * row :]
    return heads + tails[: len(tails) // row * row]


def _document(line: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
        document["text"].encode()
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    return document


def in_child(
    conversion: Conversion, kill_at: int | str | None = None, file_limit: int | None = None
) -> tuple[int, str]:
    """Converts in a process of its own.

    Args:
        conversion: What to convert.
        kill_at: Kills the process at this change of the file system, counted from 0, or at the first change
            of a path that holds this string.
        file_limit: The longest file it may write, in bytes.

    Returns:
        Its exit code, and what it said, which starts with the number of changes to the file system.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.data.support"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(conversion, kill_at, file_limit, sender))
    child.start()
    sender.close()
    try:
        said = receiver.recv()
    except EOFError:
        said = ""
    child.join()
    return child.exitcode or 0, said


class _Changes:
    """Counts what changes the file system, and kills the process at one of them."""

    def __init__(self, kill_at: int | str | None) -> None:
        self.count = 0
        self.kill_at = kill_at

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            named = isinstance(self.kill_at, str) and self.kill_at in str(args[0])
            if named or self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


def _child(conversion: Conversion, kill_at: int | str | None, file_limit: int | None, sender: Any) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if file_limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    changes = _Changes(kill_at)
    sys.addaudithook(changes.hook)
    try:
        said = f"{convert(conversion).encoded.documents} documents"
    except ValueError as error:
        said = f"{type(error).__name__}: {error}"
    sender.send(f"{changes.count} {said}")
