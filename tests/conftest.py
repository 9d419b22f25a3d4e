"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

import pytest

# Before torch is imported: the machines that run this are small, and a test that trains with more
# threads than cores is many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Every streaming data set of this process keeps its shared memory open to the end.
_, _most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_most_files, _most_files))
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives every test a TMPDIR: streaming numbers its shared memory by files it leaves there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and MDS shards; see :func:`tests.support.write_corpus`."""
    from tests.support import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus"))
