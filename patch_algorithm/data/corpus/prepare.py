"""The built-in corpus: real text, gathered from the running installation, without a network.

The folder it makes is a converted dataset, with ``train`` and ``val`` (MDS shards), ``tokenizer`` and
``dataset.json``. ``prepared.json`` also records the settings, the versions it was made from, and its size.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from patch_algorithm.data.conversion.documents import TRAIN, VAL, held_out
from patch_algorithm.data.corpus.gather import PACKAGES, gather, package_root, package_version

__all__ = ["BuiltinCorpus", "BuiltinCorpusTokenizer", "prepare_builtin_corpus"]

log = logging.getLogger(__name__)

_RECORD = "prepared.json"
_TOKENIZER = "tokenizer"
_DATASET = "dataset"
_FORMAT = 2
_SMALLEST_VOCABULARY = 258  # 256 bytes and the two special tokens
_LARGEST_VOCABULARY = 2**16  # tokens are stored as unsigned 16-bit integers
_LONGEST_WAIT = 1800.0  # seconds


@dataclass(frozen=True)
class BuiltinCorpus:
    """The built-in corpus, as a YAML requests it under ``variables.builtin_corpus``.

    Args:
        folder: The folder of the prepared data.
        row_tokens: Tokens in a row of the train split, k * L for patch-level training.
        val_row_tokens: Tokens in a row of the val split. Rows are not cut in evaluation, so this is
            the model's context L.
        vocab_size: Largest size of the tokenizer's vocabulary.
        megabytes: Millions of bytes of text to gather.
        val_share: Share of the documents that is held out, chosen by their hash.
        packages: Installed packages whose docstrings are gathered, and their source files if there is not
            enough text; ``stdlib`` is Python's standard library.

    Raises:
        ValueError: For values out of range and packages that are not installed.
    """

    folder: str
    row_tokens: int
    val_row_tokens: int
    vocab_size: int = 4096
    megabytes: float = 10.0
    val_share: float = 0.03
    packages: tuple[str, ...] = PACKAGES

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str) or not self.folder:
            raise _bad("folder", self.folder, "the path of a folder")
        for name in ("row_tokens", "val_row_tokens"):
            if not _is_int(getattr(self, name)) or getattr(self, name) < 2:
                raise _bad(name, getattr(self, name), "a whole number of at least 2")
        smallest, largest = _SMALLEST_VOCABULARY, _LARGEST_VOCABULARY
        if not _is_int(self.vocab_size) or not smallest <= self.vocab_size <= largest:
            raise _bad("vocab_size", self.vocab_size, f"a whole number from {smallest} to {largest}")
        if not _is_number(self.megabytes) or not 0 < self.megabytes < math.inf:
            raise _bad("megabytes", self.megabytes, "a number above 0")
        if not _is_number(self.val_share) or not 0 < self.val_share < 1:
            raise _bad("val_share", self.val_share, "a number between 0 and 1")
        if not self.packages or not all(isinstance(name, str) for name in self.packages):
            raise _bad("packages", self.packages, "a list of the names of installed packages")
        for package in self.packages:
            package_root(package)

    @classmethod
    def from_variables(cls, asked: object) -> BuiltinCorpus:
        """Reads the mapping of the YAML.

        Raises:
            ValueError: If it is not a mapping, has unknown keys, lacks a key, or a value is out of range.
        """
        if not isinstance(asked, Mapping):
            raise ValueError(f"variables.builtin_corpus is {asked!r}; expected a mapping of its keys.")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(str(key) for key in set(asked) - known):
            raise ValueError(
                f"variables.builtin_corpus has the unknown keys {', '.join(unknown)}; known are "
                f"{', '.join(sorted(known))}."
            )
        needed = ("folder", "row_tokens", "val_row_tokens")
        if missing := [key for key in needed if key not in asked]:
            raise ValueError(f"variables.builtin_corpus lacks {', '.join(missing)}.")
        values = dict(asked)
        if isinstance(packages := values.get("packages"), list):
            values["packages"] = tuple(packages)
        return cls(**values)

    def fingerprint(self) -> dict[str, Any]:
        """All that decides the content of the folder."""
        asked = {**asdict(self), "packages": list(self.packages)}
        del asked["folder"]
        versions = {package: package_version(package) for package in self.packages}
        return {
            "format": _FORMAT,
            **asked,
            "versions": {**versions, "tokenizers": metadata.version("tokenizers")},
        }


def prepare_builtin_corpus(corpus: BuiltinCorpus) -> Path:
    """Makes the corpus, unless it is there already.

    Under a launcher of several processes, the first on each machine makes it and the others wait. It is
    written next to ``corpus.folder`` and renamed when it is complete, under a file lock.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds something else, which is never overwritten, or the text does
            not fill a row.
        RuntimeError: If another process does not finish.
    """
    folder = Path(corpus.folder)
    fingerprint = corpus.fingerprint()
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        _wait_for(folder, fingerprint)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if _is_prepared(folder, fingerprint):
            log.info("Built-in corpus: reusing %s", folder)
            return folder
        started = time.monotonic()
        aside = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)  # of a killed process: the lock is ours
        try:
            counts = _write(corpus, fingerprint, aside)
            (aside / _DATASET).rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    log.info(
        "Built-in corpus: %s, made in %.0f s in %s",
        ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()),
        time.monotonic() - started,
        folder,
    )
    return folder


class BuiltinCorpusTokenizer(PreTrainedTokenizerBase):
    """llm-foundry's name for the prepared tokenizer: ``tokenizer: {name: builtin_corpus, ...}``.

    llm-foundry registers tokenizers as classes. This one constructs an ordinary
    ``PreTrainedTokenizerFast``, so checkpoints and exports do not depend on it.

    Args:
        folder: ``variables.builtin_corpus.folder``.
        **kwargs: As for any tokenizer, such as ``model_max_length``.

    Raises:
        ValueError: If the corpus has not been prepared in ``folder``.
    """

    def __new__(cls, folder: str, **kwargs: Any) -> PreTrainedTokenizerFast:
        """Loads the prepared tokenizer."""
        tokenizer = Path(folder) / _TOKENIZER
        if not tokenizer.is_dir():
            raise ValueError(
                f"The built-in corpus is not prepared: there is no {tokenizer}. Start the run with "
                "`patch-level train YAML`, which prepares it, or prepare it once with "
                "`patch-level prepare YAML`, from the same folder and with the same overrides."
            )
        return PreTrainedTokenizerFast.from_pretrained(str(tokenizer), **kwargs)


builtin_corpus_tokenizer = BuiltinCorpusTokenizer


def _write(corpus: BuiltinCorpus, fingerprint: dict[str, Any], aside: Path) -> dict[str, int]:
    # Imported here: an installation whose data is prepared need not wait for it.
    from patch_algorithm.data.conversion.conversion import convert
    from patch_algorithm.data.conversion.options import Conversion
    from patch_algorithm.data.corpus.tokenizer import train_tokenizer
    from patch_algorithm.data.readers.find import BUILTIN
    from patch_algorithm.data.readers.texts import TextSource
    from patch_algorithm.data.tokens.encoding import load_tokenizer

    log.info(
        "Built-in corpus: gathering %s MB of text from %s; this is done once",
        corpus.megabytes,
        ", ".join(corpus.packages),
    )
    aside.mkdir()
    documents = gather(corpus.packages, corpus.megabytes)
    log.info("Built-in corpus: training a tokenizer of %d entries", corpus.vocab_size)
    train = [text for text in documents if not held_out(text.encode(), corpus.val_share)]
    train_tokenizer(train, corpus.vocab_size, aside / _TOKENIZER)
    # Named as a user names it: where it was made says nothing.
    tokenizer = replace(load_tokenizer(str(aside / _TOKENIZER)), name="builtin_corpus")
    text_bytes = int(corpus.megabytes * 1e6)
    options = Conversion(
        sources=(TextSource(BUILTIN, lambda: documents, fingerprint, text_bytes),),
        tokenizer=str(aside / _TOKENIZER),
        out=str(aside / _DATASET),
        row_tokens=corpus.row_tokens,
        val_row_tokens=corpus.val_row_tokens,
        val_fraction=corpus.val_share,
        workers=0,
    )
    info = convert(options, tokenizer).info
    rows = {split: sum(s.rows for s in info.streams if s.split == split) for split in (TRAIN, VAL)}
    for split, count in rows.items():
        if count == 0:
            raise ValueError(
                f"variables.builtin_corpus: {corpus.megabytes} MB of text do not fill one row of the "
                f"{split} split. Raise megabytes" + (" or val_share." if split == VAL else ".")
            )
    counts = {
        "documents": len(documents),
        "vocabulary": tokenizer.vocab_size,
        "train_rows": rows[TRAIN],
        "train_tokens": rows[TRAIN] * corpus.row_tokens,
        "val_rows": rows[VAL],
        "val_tokens": rows[VAL] * corpus.val_row_tokens,
    }
    record = {"fingerprint": fingerprint, "counts": counts}
    (aside / _DATASET / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return counts


def _is_prepared(folder: Path, fingerprint: dict[str, Any]) -> bool:
    if not folder.exists():
        return False
    fix = f"Name another folder, or delete {folder} to have it prepared again."
    try:
        found = json.loads((folder / _RECORD).read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"variables.builtin_corpus.folder: {folder} exists, but is not a prepared corpus. {fix}"
        ) from error
    if differences := _differences(found, fingerprint):
        raise ValueError(
            f"variables.builtin_corpus.folder: {folder} holds a corpus made with other settings: "
            f"{'; '.join(differences)}. {fix}"
        )
    parts = (f"train{os.sep}index.json", f"val{os.sep}index.json", _TOKENIZER)
    if gone := [part for part in parts if not (folder / part).exists()]:
        raise ValueError(f"variables.builtin_corpus.folder: {folder} lacks {', '.join(gone)}. {fix}")
    return True


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], within: str = "") -> list[str]:
    differences = []
    for key in sorted({*found, *wanted}):
        there, asked = found.get(key), wanted.get(key)
        if isinstance(there, Mapping) and isinstance(asked, Mapping):
            differences += _differences(there, asked, f"{within}{key}.")
        elif there != asked:
            differences.append(f"{within}{key} is {there!r} there and {asked!r} here")
    return differences


def _wait_for(folder: Path, fingerprint: dict[str, Any]) -> None:
    # torch.distributed is not up yet, so there is no barrier to wait at.
    deadline = time.monotonic() + _LONGEST_WAIT
    while not _is_prepared(folder, fingerprint):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"Waited {_LONGEST_WAIT / 60:.0f} minutes for local rank 0 to prepare {folder}."
            )
        time.sleep(0.5)


def _bad(key: str, value: object, expected: str) -> ValueError:
    return ValueError(f"variables.builtin_corpus.{key} is {value!r}; expected {expected}.")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
