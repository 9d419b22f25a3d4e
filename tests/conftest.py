"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before torch is imported: the machines that run this are small, and a test that trains with more
# threads than cores is many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

NUMBERS_OF_A_WORKER = 2000
"""More datasets than streaming opens in one session of tests."""

# Property tests try the same examples on every machine and in every run.
settings.register_profile("patch_algorithm", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("patch_algorithm")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps a file's tests in one worker: they share runs that are trained once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def enough_file_descriptors() -> None:
    """Every dataset of streaming keeps a dozen open until its process ends."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 20_000 if hard == resource.RLIM_INFINITY else min(20_000, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@pytest.fixture(scope="session", autouse=True)
def own_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Gives the session a TMPDIR: streaming numbers its shared memory by files it leaves there."""
    folder = tmp_path_factory.mktemp("tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        # Two workers of pytest-xdist that look for a free number at the same time would take the same one.
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        for number in range(worker * NUMBERS_OF_A_WORKER):
            (folder / f"{number:06}_cache_filelock").touch()
        yield folder


@pytest.fixture(autouse=True)
def stepped_over_shared_memory(own_temporary_directory: Path) -> None:
    """Lets streaming step over shared memory that is there already.

    Of every number without a lock file each new dataset opens all the memory, and never closes it: that
    of killed processes, and that of all datasets before it. A session soon runs out of file
    descriptors.
    """
    for left in Path("/dev/shm").glob("[0-9]*_locals"):
        (own_temporary_directory / left.name.replace("locals", "cache_filelock")).touch()


@pytest.fixture(autouse=True)
def log_level_put_back() -> Iterator[None]:
    """A command that ran in this process has raised it, and what a run tells goes another way then."""
    log = logging.getLogger("patch_algorithm")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and MDS shards; see :func:`tests.support.write_corpus`."""
    from tests.support import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def run_of(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a run of ``tests.export.runs`` when a test first asks for it; nobody may change its folder."""
    from tests.export.runs import make_run

    made: dict[tuple[str, str], Path] = {}

    def run(name: str, precision: str = "float32") -> Path:
        if (name, precision) not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name, precision] = make_run(name, corpus, folder, precision)
        return made[name, precision]

    return run
