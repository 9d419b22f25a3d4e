"""The commands ``patch-level doctor`` and ``patch-level init``."""

from __future__ import annotations

import json
import platform
import shutil
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from patch_algorithm.common.command_line import errors_as_exit_codes, examples
from patch_algorithm.common.files import write_atomically
from patch_algorithm.common.options import OUTPUT, Overrides
from patch_algorithm.common.version import __version__

__all__ = ["add_commands"]

_CODES = (
    "0 healthy, or only notes and warnings",
    "1 an error was found, with --strict also a warning",
    "2 bad input",
)


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
    app.command(
        rich_help_panel="Before a run",
        no_args_is_help=True,
        epilog=examples(
            "patch-level init mpt-1b.yaml --out mpt-1b-patch.yaml",
            "patch-level init mpt-1b.yaml --k 4 --ratio 2/3 --data ./pile-mds --out mpt-1b-patch.yaml",
            "patch-level init mpt-1b.yaml --schedule per-stage --out mpt-1b-patch.yaml",
            codes=("0 written", "1 written, and patch-level doctor finds errors in it", "2 bad input"),
        ),
    )(init)


class Schedule(str, Enum):
    """What the learning rate of a new configuration does."""

    plateau = "plateau"
    per_stage = "per-stage"


def init(
    stock: Annotated[
        str, typer.Argument(metavar="STOCK.yaml", help="An llm-foundry pre-training configuration.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="NEW.yaml", help="The file to write; it must not exist.", rich_help_panel=OUTPUT
        ),
    ],
    k: Annotated[
        int | None,
        typer.Option(help="Tokens per patch. Default: the file's, or 4.", rich_help_panel="Method"),
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option(
            help="Share of the run that is trained in patches, or a time. Default: the file's, or 2/3.",
            rich_help_panel="Method",
        ),
    ] = None,
    schedule: Annotated[
        Schedule,
        typer.Option(
            help="One warm-up, plateau and decay; or, as in the paper, the stock schedule in each stage, "
            "with the optimizer reset.",
            rich_help_panel="Method",
        ),
    ] = Schedule.plateau,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_URL",
            help="A dataset from `patch-level data convert`. Default: keep the data of the stock file.",
            rich_help_panel="Data",
        ),
    ] = None,
) -> None:
    """Turn a stock llm-foundry configuration into one for patch-level training.

    Shows every changed line with its reason, keeps comments and order, and checks the result.
    """
    with errors_as_exit_codes("init"):
        from patch_algorithm.checks import Severity, rendering
        from patch_algorithm.common.redaction import redact
        from patch_algorithm.planning.config import read_config
        from patch_algorithm.planning.doctor import examine
        from patch_algorithm.planning.init_config import InitOptions, rewrite

        read_config(stock)  # says so where there is none
        if out.exists():
            raise ValueError(f"--out {out} exists, and is not overwritten.")
        if not out.parent.is_dir():
            raise ValueError(f"--out {out}: there is no folder {out.parent}.")
        options = InitOptions(k, ratio, data, schedule is Schedule.per_stage)
        document = rewrite(Path(stock).read_text("utf-8"), options)
        write_atomically(out, document.text)
        typer.echo(redact(document.diff(stock, str(out))))
        findings = examine(read_config(str(out)), str(out))
        width = min(shutil.get_terminal_size().columns, 110)
        typer.echo(f"\npatch-level doctor {out}\n\n{rendering.as_report(findings, width)}")
        if any(one.severity is Severity.error for one in findings):
            raise typer.Exit(1)


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN.yaml]", help="The run's configuration. Default: check this installation."
        ),
    ] = None,
    overrides: Overrides = None,
    here: Annotated[
        bool,
        typer.Option(
            "--here",
            help="The run will start on this machine, so missing data or a missing GPU is an error.",
            rich_help_panel="Checks",
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 for warnings as well.", rich_help_panel="Checks")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON: id, severity, found, why, fix.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Check a run before it starts, or check this installation.

    Nothing is built, downloaded or written. The output holds no secrets and can be pasted into an issue.
    """
    with errors_as_exit_codes("doctor"):
        from patch_algorithm.checks import Severity, rendering
        from patch_algorithm.common.redaction import redact
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
            typer.echo(f"{redact(_headline(facts))}\n\n{rendering.as_report(findings, width)}")
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
