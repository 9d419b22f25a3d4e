"""The command ``patch-level``."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from patch_algorithm.common.version import __version__
from patch_algorithm.data import commands as data_commands
from patch_algorithm.reporting import commands as reporting_commands

__all__ = ["app"]

app = typer.Typer(
    help="Patch-level training for MosaicML Composer and llm-foundry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_commands.app, name="data")
app.command(no_args_is_help=True)(reporting_commands.report)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"patch-algorithm {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Patch-level training for MosaicML Composer and llm-foundry."""


@app.command()
def prepare(
    config: Annotated[str, typer.Argument(metavar="YAML", help="The run's configuration.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The run's dotted overrides."),
    ] = None,
) -> None:
    """Prepare the data that a configuration asks for, without training.

    Data that is there already is reused, and nothing is overwritten.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("patch_algorithm").setLevel(logging.INFO)
    # Imported here: the help text shall not wait for transformers.
    from patch_algorithm.preflight import prepare as prepare_data
    from patch_algorithm.preflight import read_config

    try:
        folder = prepare_data(read_config(config, overrides or ()))
    except ValueError as error:
        typer.echo(f"patch-level prepare: {error}", err=True)
        raise typer.Exit(2) from error
    if folder is None:
        typer.echo(f"{config} asks for no data to be prepared (variables.builtin_corpus).")
    else:
        typer.echo(f"Prepared: {folder}")
