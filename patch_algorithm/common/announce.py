"""Messages to the user, once per job: what happens, and what to look at."""

from __future__ import annotations

import logging
import sys
import warnings

from composer.utils import dist

__all__ = ["announce", "warn"]

log = logging.getLogger("patch_algorithm")


def announce(text: str) -> None:
    """Tells the user something once per job, whether logging is set up or not.

    llm-foundry raises the level of only its own loggers, so what a plugin logs at INFO is never seen. A
    run's stages are worth a line on standard error.
    """
    if dist.get_global_rank() != 0:
        return
    if log.isEnabledFor(logging.INFO):
        log.info(text)
    else:
        sys.stderr.write(f"{text}\n")


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns as :func:`warnings.warn` does, without a line of this package's source below the text.

    The trainer calls this package, so that no frame of the stack is the user's own code.
    """
    warnings.warn_explicit(text, category, filename="patch_algorithm", lineno=1, module="patch_algorithm")
