"""Which findings somebody above has shown already, so that nothing is said twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from patch_algorithm.checks.finding import Finding

__all__ = ["already_shown", "not_yet_shown"]

_shown: ContextVar[frozenset[str]] = ContextVar("_shown", default=frozenset())


@contextmanager
def already_shown(ids: Iterable[str]) -> Iterator[None]:
    """Inside, findings with these ids count as shown.

    ``train.py`` wraps the run in it. A context variable ends with the block and is seen by this thread
    alone, so that runs in one process do not silence each other.

    Args:
        ids: What has been shown, or looked at and found healthy.
    """
    reset = _shown.set(_shown.get() | frozenset(ids))
    try:
        yield
    finally:
        _shown.reset(reset)


def not_yet_shown(findings: Iterable[Finding]) -> list[Finding]:
    """Those that nobody has shown."""
    return [one for one in findings if one.id not in _shown.get()]
