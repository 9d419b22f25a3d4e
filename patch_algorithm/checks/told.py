"""Which findings somebody above has shown already, so that nothing is said twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from patch_algorithm.checks.finding import Finding

__all__ = ["already_told", "untold"]

_told: ContextVar[frozenset[str]] = ContextVar("_told", default=frozenset())


@contextmanager
def already_told(ids: Iterable[str]) -> Iterator[None]:
    """Inside, findings with these ids count as shown.

    ``train.py`` wraps the run in it. A context variable ends with the block and is seen by this thread
    alone, so that runs in one process do not silence each other.

    Args:
        ids: What has been shown, or looked at and found healthy.
    """
    reset = _told.set(_told.get() | frozenset(ids))
    try:
        yield
    finally:
        _told.reset(reset)


def untold(findings: Iterable[Finding]) -> list[Finding]:
    """Those that nobody has shown."""
    return [one for one in findings if one.id not in _told.get()]
