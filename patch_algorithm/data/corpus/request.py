"""What a YAML asks for under ``variables.builtin_corpus``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from typing import Any

from patch_algorithm.common.arguments import is_number, is_whole
from patch_algorithm.data.corpus.gather import PACKAGES, package_root, package_version

__all__ = ["BuiltinCorpus"]

_FORMAT = 2
_SMALLEST_VOCABULARY = 258  # 256 bytes and the two special tokens
_LARGEST_VOCABULARY = 2**16  # tokens are stored as unsigned 16-bit integers


@dataclass(frozen=True)
class BuiltinCorpus:
    """What a YAML asks for under ``variables.builtin_corpus``.

    Args:
        folder: Where the prepared data lies, or shall lie.
        row_tokens: Tokens in a row of the train split, k * L for patch-level training.
        val_row_tokens: Tokens in a row of the val split. Rows are not cut in evaluation, so this is
            the model's context L.
        vocab_size: Most entries of the tokenizer's vocabulary.
        megabytes: Millions of bytes of text to gather.
        val_share: Share of the documents that is held out, chosen by their hash.
        packages: Installed packages whose docstrings, and sources where those are not enough, are
            gathered; ``stdlib`` is Python's own library.

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
            if not is_whole(getattr(self, name)) or getattr(self, name) < 2:
                raise _bad(name, getattr(self, name), "a whole number of at least 2")
        smallest, largest = _SMALLEST_VOCABULARY, _LARGEST_VOCABULARY
        if not is_whole(self.vocab_size) or not smallest <= self.vocab_size <= largest:
            raise _bad("vocab_size", self.vocab_size, f"a whole number from {smallest} to {largest}")
        if not is_number(self.megabytes) or not 0 < self.megabytes < math.inf:
            raise _bad("megabytes", self.megabytes, "a number above 0")
        if not is_number(self.val_share) or not 0 < self.val_share < 1:
            raise _bad("val_share", self.val_share, "a number between 0 and 1")
        if not self.packages or not all(isinstance(name, str) for name in self.packages):
            raise _bad("packages", self.packages, "a list of the names of installed packages")
        for package in self.packages:
            package_root(package)

    @classmethod
    def from_variables(cls, asked: object) -> BuiltinCorpus:
        """Reads the mapping of the YAML.

        Raises:
            ValueError: If it is no mapping, has unknown keys, lacks one, or a value is out of range.
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


def _bad(key: str, value: object, expected: str) -> ValueError:
    return ValueError(f"variables.builtin_corpus.{key} is {value!r}; expected {expected}.")
