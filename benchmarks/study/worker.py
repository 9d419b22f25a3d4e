"""Works through the plan: one run after another in one process, each appended when it is finished."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.study.cells import next_run
from benchmarks.study.data import Corpus, load_corpus
from benchmarks.study.machine import describe
from benchmarks.study.settings import Settings
from benchmarks.study.store import append_row, read_rows

__all__ = ["check_corpus", "pause_file", "prepared_corpora", "run_one", "work"]

log = logging.getLogger(__name__)

Plan = Callable[..., "tuple[str, Settings] | None"]


def work(
    results: Path, data: Path, *, plan: Plan = next_run, most_runs: int | None = None, threads: int = 1
) -> int:
    """Runs what the plan has left, until nothing is.

    Several processes may share a file of results: each run is locked while it is at work.

    Args:
        results: The JSONL file.
        data: Folder of the prepared corpora.
        plan: Names the next run, as :func:`.next_run` does.
        most_runs: Stops after so many runs.
        threads: Threads of torch.

    Returns:
        How many runs were finished.

    Raises:
        ValueError: If no corpus is prepared, or one is not that of the results.
    """
    import torch

    torch.set_num_threads(threads)
    corpora = prepared_corpora(data)
    if not corpora:
        raise ValueError(
            f"{data} holds no prepared corpus. Make it with `python -m benchmarks.study prepare`."
        )
    for name, corpus in corpora.items():
        check_corpus(results, name, corpus)
    done, busy = 0, set[str]()
    while most_runs is None or done < most_runs:
        found = plan(read_rows(results), skip=busy, corpora=tuple(corpora))
        if found is None:
            break
        cell, settings = found
        try:
            with _lock_of(results, settings).acquire(timeout=0):
                if settings.identity in read_rows(results):
                    busy.add(settings.identity)  # finished elsewhere in the meantime
                    continue
                log.info("%s: %s %s", cell, settings.identity, settings.to_row())
                append_row(results, run_one(settings, corpora[settings.corpus], pause_file(results)))
                done += 1
        except Timeout:
            busy.add(settings.identity)
    return done


def _lock_of(results: Path, settings: Settings) -> FileLock:
    folder = results.parent / ".running"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{settings.identity}.lock")


def run_one(settings: Settings, corpus: Corpus, pause: Path | None = None) -> dict[str, Any]:
    """Trains one run and returns its row of results."""
    from benchmarks.study.training import train

    measured = train(settings, corpus, pause, say=log.info)
    return {
        "id": settings.identity,
        "settings": settings.to_row(),
        **measured,
        "corpus": corpus.fingerprint,
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **describe(),
    }


def pause_file(results: Path) -> Path:
    """While this file exists, runs wait between two steps."""
    return results.with_suffix(".pause")


def prepared_corpora(data: Path) -> dict[str, Corpus]:
    """All prepared corpora of a folder, by name."""
    return {path.parent.name: load_corpus(path.parent) for path in sorted(data.glob("*/corpus.json"))}


def check_corpus(results: Path, name: str, corpus: Corpus) -> None:
    """Keeps the list of held-out documents beside the results, and refuses another corpus of that name.

    Raises:
        ValueError: If results of this corpus name were made with other tokens.
    """
    path = results.parent / f"documents-{name}.json"
    record = {"fingerprint": corpus.fingerprint, **corpus.documents}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record) + "\n")
        return
    known = json.loads(path.read_text())["fingerprint"]
    if known != corpus.fingerprint:
        raise ValueError(
            f"the corpus {name!r} has the fingerprint {corpus.fingerprint}, but {path} has {known}. "
            "Prepare it from the same text and versions, or write to another file of results."
        )
