"""The command ``patch-level``."""

from __future__ import annotations

from typing import Annotated

import typer

from patch_algorithm.common.command_line import errors_as_exit_codes, examples
from patch_algorithm.common.options import Overrides, RunConfig
from patch_algorithm.common.version import __version__
from patch_algorithm.data import commands as data_commands
from patch_algorithm.evaluation.commands import add_eval
from patch_algorithm.export.commands import add_check_export
from patch_algorithm.planning import commands as planning_commands
from patch_algorithm.planning.plan_command import add_plan
from patch_algorithm.recipes import commands as recipe_commands
from patch_algorithm.reporting.commands import add_report

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipe_commands.add_commands(app)
planning_commands.add_commands(app)
add_plan(app)
add_report(app)
add_check_export(app)
add_eval(app)
app.add_typer(data_commands.app, name="data", rich_help_panel="Data")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"patch-algorithm {__version__}")
        raise typer.Exit


@app.callback(
    epilog=examples(
        "patch-level recipe quickstart --out run.yaml",
        "patch-level train run.yaml",
        "patch-level init stock.yaml --data ./pile-mds --out run.yaml",
        "patch-level doctor run.yaml",
        "patch-level data convert --source pile/train --tokenizer gpt2 --out ./pile-mds",
        codes=("0 success", "1 something was found", "2 bad input", "130 interrupted"),
    )
)
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Patch-level training for MosaicML Composer and llm-foundry."""


@app.command(
    rich_help_panel="Data",
    epilog=examples(
        "patch-level prepare yamls/quickstart.yaml",
        "patch-level prepare yamls/quickstart.yaml variables.builtin_corpus.megabytes=20",
        codes=("0 prepared, or nothing to prepare", "2 bad input"),
    ),
)
def prepare(
    config: RunConfig,
    overrides: Overrides = None,
) -> None:
    """Prepare the data that a configuration asks for, without training.

    Existing data is reused; nothing is overwritten.
    """
    with errors_as_exit_codes("prepare"):
        # Imported here: the help text shall not wait for transformers.
        from patch_algorithm.preflight import prepare as prepare_data
        from patch_algorithm.preflight import read_config

        folder = prepare_data(read_config(config, overrides or ()))
    if folder is None:
        typer.echo(f"{config} asks for no data to be prepared (variables.builtin_corpus).")
    else:
        typer.echo(f"Prepared: {folder}")


@app.command(
    no_args_is_help=True,
    rich_help_panel="A run",
    epilog=examples(
        "patch-level train run.yaml",
        "patch-level train run.yaml max_duration=900ba algorithms.patch_level.k=2",
        "composer -m patch_algorithm.train run.yaml",
        codes=("0 trained, or already finished", "1 the run failed", "2 bad input"),
    ),
)
def train(
    config: RunConfig,
    overrides: Overrides = None,
) -> None:
    """Train with llm-foundry, in one process; `composer -m patch_algorithm.train` trains on all GPUs.

    The configuration is checked and its data is prepared first.
    """
    from patch_algorithm.train import main as train_main

    status = train_main([config, *(overrides or ())], "patch-level train")
    if status:
        raise typer.Exit(status)
