"""Arguments and options that several commands of ``patch-level`` take."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["MODEL", "OUTPUT", "AsJson", "Overrides", "RunConfig", "TrustRemoteCode"]

MODEL = "The model"
OUTPUT = "Output"
"""Panels of the help text."""

RunConfig = Annotated[str, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="The run's dotted overrides."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the Python code that the export brings, as MPT's does.",
        rich_help_panel=MODEL,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)]
