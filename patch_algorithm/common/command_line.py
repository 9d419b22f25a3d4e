"""What the commands of ``patch-level`` share: logging, and errors as exit codes."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from patch_algorithm.common.redaction import redact

__all__ = ["anchor_of", "anchor_of_module", "complaint", "errors_as_exit_codes", "examples"]

_PACKAGE = Path(__file__).parents[1]


def examples(*commands: str, codes: Sequence[str] = ()) -> str:
    """The text below a command's options: examples, and what its exit codes mean."""
    shown = ["Examples:", *commands]
    if codes:
        shown.append(f"Exit codes: {'; '.join(codes)}.")
    return "\n\n".join(shown)


def complaint(command: str, error: BaseException) -> str:
    """What a command says of an error: one line without secrets, and where the errors page has it."""
    anchor = anchor_of(error)
    return redact(f"{command}: {error}") + (f" [{anchor}]" if anchor else "")


def anchor_of(error: BaseException) -> str | None:
    """The anchor on the documentation's errors page: the module that raised, ``planning-config``.

    ``None`` for an error of another package, which the page does not have.
    """
    frames = traceback.extract_tb(error.__traceback__)
    raised_in = Path(frames[-1].filename).resolve() if frames else Path()
    if not raised_in.is_relative_to(_PACKAGE.resolve()):
        return None
    return anchor_of_module(".".join(raised_in.relative_to(_PACKAGE.resolve()).with_suffix("").parts))


def anchor_of_module(module: str) -> str:
    """The anchor of a module's messages on the errors page, which is generated with the same rule."""
    return "-".join(part.strip("_") for part in module.split(".")).replace("_", "-")


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
        typer.echo(complaint(f"patch-level {command}", error), err=True)
        raise typer.Exit(2) from error
