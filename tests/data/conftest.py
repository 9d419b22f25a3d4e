"""Corpora that several files of tests read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.data.support import documents, lines, make_tokenizer, run

# As the engine does, which here is not the first to import Ray.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture(scope="session")
def pile(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of about 100 kB."""
    folder = tmp_path_factory.mktemp("pile")
    for index in range(2):
        (folder / f"0{index}.jsonl").write_bytes(lines(documents(seed=index)))
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def converted(pile: list[Path], tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files converted, with a val split."""
    out = tmp_path_factory.mktemp("converted") / "out"
    run(pile, tokenizer, out, val_fraction=0.1)
    return out
