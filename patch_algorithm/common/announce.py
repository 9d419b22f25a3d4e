"""Telling the user something once per job."""

from __future__ import annotations

import logging
import sys

from composer.utils import dist

__all__ = ["announce"]

log = logging.getLogger("patch_algorithm")


def announce(text: str) -> None:
    """Tells the user something once per job, wherever logging is set up or not.

    llm-foundry raises the level of its own loggers only, so that what a plugin logs at INFO is never
    seen; a run's stages are worth a line on standard error.
    """
    if dist.get_global_rank() != 0:
        return
    if log.isEnabledFor(logging.INFO):
        log.info(text)
    else:
        sys.stderr.write(f"{text}\n")
