"""The command ``patch-level report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from patch_algorithm.common.command_line import errors_as_exit_codes, examples

__all__ = ["add_report"]


def add_report(app: typer.Typer) -> None:
    """Adds the command to ``patch-level``."""
    app.command(
        no_args_is_help=True,
        rich_help_panel="After a run",
        epilog=examples(
            "patch-level report runs/patch runs/twin",
            "patch-level report runs/patch-* runs/twin-* --out /tmp/report",
            "patch-level report a=runs/1 a=runs/2 b=runs/3 --baseline runs/3",
            "patch-level report runs/patch runs/twin --json > numbers.json",
            codes=(
                "0 the report is written, whatever the verdict",
                "2 bad input, named with file and line; nothing is written",
            ),
        ),
    )(report)


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN...",
            help="history.jsonl files, or save folders that hold one. NAME= names their group. Also results "
            "(.json) of `patch-level eval`.",
            show_default=False,
        ),
    ],
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="A run whose group the others are compared with. May be given several times. "
            "[default: all runs without a patch stage]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report.")] = Path("report"),
    metric: Annotated[
        str | None,
        typer.Option(
            help="Eval loss to compare, if the runs have several, e.g. metrics/val/LanguageCrossEntropy."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all numbers as JSON instead of the verdict as text.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of the same names in DIR.")
    ] = False,
) -> None:
    """Compare finished or running runs: was patch-level training worth it?

    Reads what the logger `history` wrote. Writes report.html (one file that
    needs no network), its pictures as PNG, and report.json.

    Runs that differ only in their seed form a group. The verdict compares
    patch runs with token-only runs at equal data and at equal compute, and only
    runs whose schedules ended; otherwise it says which run is missing.

    Results of `patch-level eval --out` in the folder of a run are shown as well.
    """
    with errors_as_exit_codes("report"):
        # Imported here: the help text shall not wait for matplotlib, nor an error for the pictures.
        from patch_algorithm.reporting.report import make_report

        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out} is a file. Give a folder.")
        found = make_report(runs, baseline or (), metric)
        from patch_algorithm.reporting.writing import write_report

        write_report(found, out, overwrite)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        typer.echo(found.to_text())
        typer.echo(f"\n{out / 'report.html'}")
