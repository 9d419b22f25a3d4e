"""Corpora of the study: text in the Pile's format, through the package's converter, to arrays of tokens.

Shapes: R rows, T raw tokens a row.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.settings import ROW_TOKENS, VOCABULARY

__all__ = ["BUILTIN_MEGABYTES", "Corpus", "load_corpus", "prepare_builtin", "prepare_files"]

BUILTIN_MEGABYTES = 60.0
_BUILTIN_HELD_OUT = 0.06
_BUILTIN_PACKAGES = ("stdlib", "torch", "transformers", "numpy", "sympy", "networkx")
# Enough documents to train a tokenizer of 1,024 entries on; the trainer takes the first 3 million characters.
_TOKENIZER_BYTES = 6_000_000


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    Attributes:
        rows_RT: Training rows, uint16; opened in place, not read.
        held_out: Tokens of the held-out documents, one after the other, each with its end-of-text token
            and the first with one before it as well.
        documents: ``bytes``, ``tokens`` (end-of-text included) and ``component`` of each held-out
            document.
        fingerprint: Hash of all tokens.
    """

    rows_RT: np.ndarray
    held_out: np.ndarray
    documents: dict[str, list[Any]]
    fingerprint: str


def prepare_files(train: Sequence[str], held_out: Sequence[str], folder: Path) -> Corpus:
    """Prepares a corpus from files in the Pile's format, unless it is there already.

    Args:
        train: Files of the training text, ``.jsonl`` or ``.jsonl.zst``.
        held_out: Files of the held-out text.
        folder: Where the corpus is, or shall be.

    Raises:
        ValueError: If a file is missing or holds no documents.
    """
    if not (folder / "corpus.json").exists():
        for name in (*train, *held_out):
            if not Path(name).is_file():
                raise ValueError(f"{name}: there is no such file. Give files of .jsonl or .jsonl.zst.")
        first = _first_texts(train)
        documents = [document for name in held_out for document in _read(Path(name))]
        _prepare(folder, first, tuple(train), documents)
    return load_corpus(folder)


def prepare_builtin(folder: Path, megabytes: float = BUILTIN_MEGABYTES) -> Corpus:
    """Prepares a corpus from the text of the running installation, unless it is there already."""
    if not (folder / "corpus.json").exists():
        from patch_algorithm.data.conversion.documents import held_out
        from patch_algorithm.data.corpus.gather import gather
        from patch_algorithm.data.readers import TextSource
        from patch_algorithm.data.readers.find import BUILTIN

        texts = gather(_BUILTIN_PACKAGES, megabytes)
        apart = [held_out(text.encode(), _BUILTIN_HELD_OUT) for text in texts]
        train = [text for text, out in zip(texts, apart, strict=True) if not out]
        documents = [(text, "builtin") for text, out in zip(texts, apart, strict=True) if out]
        source = TextSource(BUILTIN, lambda: train, {"megabytes": megabytes}, int(megabytes * 1e6))
        _prepare(folder, train, (source,), documents)
    return load_corpus(folder)


def load_corpus(folder: Path) -> Corpus:
    """Opens a prepared corpus.

    Raises:
        ValueError: If there is none.
    """
    if not (folder / "corpus.json").exists():
        raise ValueError(
            f"{folder} holds no prepared corpus. Make it with `python -m benchmarks.study prepare`."
        )
    record = json.loads((folder / "corpus.json").read_text())
    return Corpus(
        np.load(folder / "rows.npy", mmap_mode="r"),
        np.load(folder / "held_out.npy"),
        record["documents"],
        record["fingerprint"],
    )


def _prepare(folder: Path, first: Sequence[str], sources: tuple[Any, ...], documents: list[Any]) -> None:
    from patch_algorithm.data.conversion import Conversion, convert
    from patch_algorithm.data.corpus.tokenizer import train_tokenizer

    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tokenizer = train_tokenizer(first, VOCABULARY, aside / "tokenizer")
    out = aside / "mds"
    convert(
        Conversion(
            sources=sources,
            tokenizer=str(aside / "tokenizer"),
            out=str(out),
            row_tokens=ROW_TOKENS,
            workers=0,
            progress=False,
        )
    )
    np.save(aside / "rows.npy", _rows_of(out / "train"))
    shutil.rmtree(out)
    _save_held_out(aside, tokenizer, documents)
    aside.rename(folder)


def _rows_of(mds: Path) -> np.ndarray:
    """All rows of a split, in their order."""
    from streaming import StreamingDataset

    data = StreamingDataset(local=str(mds), shuffle=False, batch_size=1)
    if not data.num_samples:
        raise ValueError(f"the training text does not fill one row of {ROW_TOKENS} tokens.")
    return np.stack([data[number]["tokens"] for number in range(data.num_samples)]).astype(np.uint16)


def _save_held_out(folder: Path, tokenizer: Any, documents: list[tuple[str, str]]) -> None:
    if not documents:
        raise ValueError("there are no held-out documents.")
    end = tokenizer.token_to_id("<|endoftext|>")
    encoded = tokenizer.encode_batch([text for text, _ in documents])
    tokens = [np.array([*one.ids, end], dtype=np.uint16) for one in encoded]
    held_out = np.concatenate([np.array([end], dtype=np.uint16), *tokens])
    np.save(folder / "held_out.npy", held_out)
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    digest = hashlib.sha256(rows.tobytes() + held_out.tobytes()).hexdigest()[:16]
    columns: dict[str, list[Any]] = {
        "bytes": [len(text.encode()) for text, _ in documents],
        "tokens": [len(one) for one in tokens],
        "component": [component for _, component in documents],
    }
    record = {
        "fingerprint": digest,
        "train_tokens": int(rows.size),
        "held_out_tokens": int(held_out.size - 1),
        "held_out_bytes": sum(columns["bytes"]),
        "documents": columns,
    }
    (folder / "corpus.json").write_text(json.dumps(record) + "\n")


def _first_texts(names: Sequence[str]) -> list[str]:
    texts: list[str] = []
    size = 0
    for text, _ in (document for name in names for document in _read(Path(name))):
        texts.append(text)
        size += len(text)
        if size > _TOKENIZER_BYTES:
            break
    return texts


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """Text and component of each document of a file."""
    import zstandard

    with path.open("rb") as raw:
        stream = zstandard.ZstdDecompressor().stream_reader(raw) if path.suffix == ".zst" else raw
        with io.TextIOWrapper(stream, encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                yield document["text"], str(document.get("meta", {}).get("pile_set_name", ""))
