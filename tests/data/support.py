"""Small corpora in the Pile's format, and conversions of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Iterable, Sequence
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
        "block_bytes": 1 << 12,
        "unit_bytes": 1 << 14,
        "shard_bytes": 1 << 14,
        "longest_line": 1 << 16,
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


def expected_ids(found: Iterable[dict[str, Any]], tokenizer: Path) -> list[list[int]]:
    """What the tokenizer itself makes of each document, with EOS."""
    loaded = load_tokenizer(str(tokenizer)).tokenizer
    encoded = loaded([d["text"] for d in found], add_special_tokens=False, split_special_tokens=True)
    return [[*ids, loaded.eos_token_id] for ids in encoded["input_ids"]]


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
