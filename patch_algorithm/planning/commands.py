"""The commands ``patch-level doctor`` and ``patch-level init``."""

from __future__ import annotations

import json
import platform
import shutil
from typing import Annotated, Any

import typer

from patch_algorithm.common.command_line import errors_as_exit_codes, examples
from patch_algorithm.common.version import __version__

__all__ = ["add_commands"]

_CODES = (
    "0 healthy, or only notes and warnings",
    "1 an error was found, with --strict also a warning",
    "2 bad input",
)
_OUTPUT = "Output"


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this room to ``patch-level``."""
    app.command(
        rich_help_panel="Before a run",
        epilog=examples(
            "patch-level doctor",
            "patch-level doctor run.yaml max_duration=2000ba",
            "patch-level doctor run.yaml --here --strict --json",
            codes=_CODES,
        ),
    )(doctor)


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[RUN.yaml]", help="The run's configuration; without it this installation."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The run's dotted overrides."),
    ] = None,
    here: Annotated[
        bool,
        typer.Option(
            "--here",
            help="The run starts on this machine: a GPU or data that it lacks is an error, and not skipped.",
            rich_help_panel="Checks",
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 for warnings, too.", rich_help_panel="Checks")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON: id, severity, found, why, fix.", rich_help_panel=_OUTPUT),
    ] = False,
) -> None:
    """Check a run before it starts, or this installation.

    Nothing is built, downloaded or written. The output holds no secrets and can be pasted into an issue.
    """
    with errors_as_exit_codes("doctor"):
        from patch_algorithm.checks import Severity, rendering
        from patch_algorithm.planning.environment import gpus, versions

        facts: dict[str, Any] = {
            "patch_algorithm": __version__,
            "file": config,
            "python": platform.python_version(),
            "platform": platform.platform(terse=True),
            "versions": versions(),
            "gpus": list(gpus()),
        }
        if config is None:
            from patch_algorithm.checks.environment import check_environment
            from patch_algorithm.checks.finding import by_severity
            from patch_algorithm.planning.environment import read_environment

            findings = by_severity(check_environment(read_environment()))
        else:
            from patch_algorithm.planning.config import read_config
            from patch_algorithm.planning.doctor import examine

            findings = examine(read_config(config, overrides or ()), config, here)
        if as_json:
            typer.echo(json.dumps(rendering.as_json(findings, **facts), indent=2, ensure_ascii=False))
        else:
            width = min(shutil.get_terminal_size().columns, 110)
            typer.echo(f"{_headline(facts)}\n\n{rendering.as_report(findings, width)}")
        bad = {Severity.error, Severity.warning} if strict else {Severity.error}
        if any(one.severity in bad for one in findings):
            raise typer.Exit(1)


def _headline(facts: dict[str, Any]) -> str:
    installed = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    devices = ", ".join(facts["gpus"]) or "no GPU"
    return (
        f"patch-algorithm {facts['patch_algorithm']} on Python {facts['python']}, {facts['platform']}, "
        f"{devices}\n{installed}"
    )
