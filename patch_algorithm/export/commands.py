"""The command ``patch-level check-export``."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from patch_algorithm.common.command_line import errors_as_exit_codes, examples
from patch_algorithm.common.options import AsJson, TrustRemoteCode

__all__ = ["add_check_export"]

_RUN, _EXPORT, _CARD = "The run", "The export", "Model card"


def add_check_export(app: typer.Typer) -> None:
    """Adds the command to ``patch-level``."""
    app.command(
        "check-export",
        rich_help_panel="After a run",
        no_args_is_help=True,
        epilog=examples(
            "patch-level check-export runs/my-run/huggingface/ba450",
            "patch-level check-export runs/my-run/huggingface/ba450 --checkpoint runs/my-run/latest-rank0.pt",
            "patch-level check-export runs/mpt/huggingface/ba450 --trust-remote-code --fix",
            "patch-level check-export DIR --checkpoint C --config run.yaml --card --results results.json",
            codes=("0 no errors, perhaps warnings", "1 an error was found", "2 bad input"),
        ),
    )(check_export)


def check_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The exported folder.", show_default=False)],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR",
            help="The Composer checkpoint that the export was made from, full or sharded.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="RUN.yaml",
            help="The run's configuration, to check the tokenizer against its data.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Check even if the last step was on patches.", rich_help_panel=_RUN),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Fix what can be fixed in the folder: model_type, the tokenizer's context, the end-of-text "
            "token.",
            rich_help_panel=_EXPORT,
        ),
    ] = False,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Write a model card, README.md, into the folder if no error is found. Needs --checkpoint or "
            "--config.",
            rich_help_panel=_CARD,
        ),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Results for the card: JSON of `patch-level eval --out`, or of lm-evaluation-harness.",
            rich_help_panel=_CARD,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing card.", rich_help_panel=_CARD)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that an exported folder holds the model that was trained, and loads as that model.

    Loads it in plain transformers. With --checkpoint, weights and logits are compared. Nothing is changed
    without --fix or --card.
    """
    with errors_as_exit_codes("check-export"):
        # Imported here: the help text shall not wait for transformers.
        from transformers.utils import logging

        from patch_algorithm.checks import Severity, rendering
        from patch_algorithm.export.card import read_results, render_card, require_no_card, write_card
        from patch_algorithm.export.check import check_export as check_folder
        from patch_algorithm.export.check import mend
        from patch_algorithm.planning.run_file import RunFile

        measured = read_results(results) if results is not None else ()
        if (results is not None or overwrite) and not card:
            raise ValueError("--results and --overwrite are for a card; add --card.")
        if card and checkpoint is None and config is None:
            raise ValueError("A card says how the model was trained: give --checkpoint, --config or both.")
        if card:
            require_no_card(folder, overwrite)
        logging.set_verbosity_error()  # advice to the authors of models
        check = partial(
            check_folder, folder, checkpoint, config, force=force, trust_remote_code=trust_remote_code
        )
        report = check()
        if fix and (changes := mend(report)):
            report = check(changes=changes)
        failed = any(one.severity is Severity.error for one in report.findings)
        if as_json:
            content = rendering.as_json(report.findings, **report.to_json())
            typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        else:
            width = min(shutil.get_terminal_size().columns, 110)
            typer.echo(f"{report.to_text()}\n\n{rendering.as_report(report.findings, width)}")
        if card and failed:
            typer.echo("No card was written: fix the errors first.", err=True)
        elif card:
            run = None if config is None else RunFile.read(config)
            typer.echo(f"Written: {write_card(folder, render_card(report, run, measured))}", err=True)
        if failed:
            raise typer.Exit(1)
