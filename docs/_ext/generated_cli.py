"""The command line, from the application itself."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from typer.main import get_command


def commands() -> str:
    """Every command with its arguments, options, examples and exit codes."""
    from patch_algorithm.cli import app

    return "\n\n".join(_of(get_command(app), "patch-level"))


def _of(command: Any, name: str) -> list[str]:
    below = getattr(command, "commands", None)
    if below is None:
        return [_page_of(command, name)]
    return [text for key in below for text in _of(below[key], f"{name} {key}")]


def _page_of(command: Any, name: str) -> str:
    context = command.context_class(command, info_name=name)
    usage = " ".join(command.get_usage(context).removeprefix("Usage:").split())
    parts = [f"## `{name}`", _prose(command.help or ""), f"```text\n{textwrap.fill(usage, 88)}\n```"]
    slug = name.replace(" ", "-")
    for one in command.params:
        # Term and text as `--help` has them; None where it hides the option.
        if record := one.get_help_record(context):
            parts.append(f"[`{record[0]}`]{{#{slug}-{one.name}}}\n: {_prose(record[1]) or '...'}")
    if command.epilog:
        parts.append(_epilog(command.epilog))
    return "\n\n".join(part for part in parts if part)


def _prose(text: str) -> str:
    """Text of a help in Markdown: what is in backticks as it is, the rest without markup."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    plain = "\n\n".join(paragraphs)
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_\[\]<>{}$#|])", r"\\\1", part)
        for part in re.split(r"(`[^`]*`)", plain)
    )


def _epilog(text: str) -> str:
    parts = text.split("\n\n")
    examples = [part for part in parts if part.startswith(("patch-level", "composer"))]
    codes = [part for part in parts if part.startswith("Exit codes")]
    shown = ["```console\n" + "\n".join(examples) + "\n```"] if examples else []
    return "\n\n".join([*shown, *codes])
