"""What stands for fastokens where it is not installed, or has to be wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer


class Stand:
    """Encodes as `tokenizers` does, but for texts that a fault is made of."""

    fault: Callable[[str], bool]

    def __init__(self, text: str) -> None:
        self._tokenizer = Tokenizer.from_str(text)

    @classmethod
    def from_json_str(cls, text: str) -> Stand:
        return cls(text)

    def encode_batch_flat(
        self, texts: list[str], add_special_tokens: bool, split_special_tokens: bool
    ) -> tuple[bytes, bytes]:
        self._tokenizer.encode_special_tokens = split_special_tokens
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        ids = [
            [*e.ids[:-1], 0] if type(self).fault(t) else e.ids for t, e in zip(texts, encoded, strict=True)
        ]
        ends = np.cumsum([0, *map(len, ids)], dtype=np.uint64)
        return np.array([i for own in ids for i in own], np.uint32).tobytes(), ends.tobytes()


def install(monkeypatch: pytest.MonkeyPatch) -> type[Stand]:
    """Puts it in the place of fastokens, without a fault."""
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0" if name == "fastokens" else version(name))
    monkeypatch.setitem(sys.modules, "fastokens", SimpleNamespace(Tokenizer=Stand))
    Stand.fault = staticmethod(lambda text: False)
    return Stand
