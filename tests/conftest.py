"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: the machines that run this are small, and a test that trains with more
# threads than cores is many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


@pytest.fixture(scope="session", autouse=True)
def own_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives the session a TMPDIR: streaming numbers its shared memory by files it leaves there.

    One for each test would make it open the memory of all earlier tests again, until there is no
    file descriptor left.
    """
    folder = tmp_path_factory.mktemp("tmp")
    # What killed processes have left in shared memory counts as taken, or every data set opens it.
    for left in Path("/dev/shm").glob("[0-9]*_locals"):
        (folder / left.name.replace("locals", "cache_filelock")).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and MDS shards; see :func:`tests.support.write_corpus`."""
    from tests.support import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus"))
