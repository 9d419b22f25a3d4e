"""What the commands of ``patch-level`` share: logging, and errors as exit codes."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from patch_algorithm.common.redaction import redact

__all__ = ["errors_as_exit_codes", "examples"]


def examples(*commands: str, codes: Sequence[str] = ()) -> str:
    """The text below a command's options: examples, and what its exit codes mean."""
    shown = ["Examples:", *commands]
    if codes:
        shown.append(f"Exit codes: {'; '.join(codes)}.")
    return "\n\n".join(shown)


@contextmanager
def errors_as_exit_codes(command: str, *, when_stopped: str = "stopped.") -> Iterator[None]:
    """Inside, bad input is one line on standard error and exit code 2, without traceback or secrets.

    Args:
        command: The command's words, such as ``doctor``.
        when_stopped: What is said when it is interrupted (exit code 130).
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("patch_algorithm").setLevel(logging.INFO)
    if not sys.warnoptions:
        # Of the packages that are imported, which a user of the command can do nothing about.
        warnings.simplefilter("ignore")
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo(f"patch-level {command}: {when_stopped}", err=True)
        raise typer.Exit(130) from error
    except (ValueError, OSError) as error:
        typer.echo(f"patch-level {command}: {redact(str(error))}", err=True)
        raise typer.Exit(2) from error
