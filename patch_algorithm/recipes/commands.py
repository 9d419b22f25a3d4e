"""The command ``patch-level recipe``."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from patch_algorithm.common.command_line import errors_as_exit_codes, examples
from patch_algorithm.common.files import write_atomically
from patch_algorithm.recipes.library import Recipe, find_recipe, recipes

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this room to ``patch-level``."""
    app.command(
        rich_help_panel="Before a run",
        epilog=examples(
            "patch-level recipe",
            "patch-level recipe quickstart --out run.yaml",
            "patch-level recipe paper/llama-370m --out token.yaml algorithms.patch_level.ratio=0",
            codes=("0 listed, shown or written", "2 bad input"),
        ),
    )(recipe)


def recipe(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A recipe. Default: list all.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Dotted keys to change in what is written."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN.yaml", help="The file to write; it must not exist. Default: show the recipe."
        ),
    ] = None,
) -> None:
    """List the training configurations that come with the package, or write one of them.

    Each is complete and commented. Edit it, or change it with overrides, which keep its comments.
    """
    with errors_as_exit_codes("recipe"):
        if name is None:
            if out is not None:
                raise ValueError(f"--out {out} without a recipe. The recipes are: {_names()}.")
            typer.echo(_listed(recipes()))
            return
        found = find_recipe(name)
        if out is not None:
            _check_free(out)
        text = _changed(found, overrides) if overrides else found.text
        if out is None:
            typer.echo(text, nl=False)
            return
        write_atomically(out, text)
        typer.echo(f"Written: {out}\nNext: patch-level doctor {out}\n      patch-level train {out}")


def _names() -> str:
    return ", ".join(recipe.name for recipe in recipes())


def _listed(found: Sequence[Recipe]) -> str:
    """Names and what each is, in two columns."""
    width = max(len(recipe.name) for recipe in found) + 2
    columns = min(shutil.get_terminal_size().columns, 110)
    lines = [
        textwrap.fill(
            recipe.title, max(columns, width + 30), initial_indent=recipe.name.ljust(width),
            subsequent_indent=" " * width,
        )
        for recipe in found
    ]  # fmt: skip
    return "\n".join(lines)


def _check_free(out: Path) -> None:
    if out.exists():
        raise ValueError(f"--out {out} exists, and is not overwritten.")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}.")


def _changed(recipe: Recipe, overrides: Sequence[str]) -> str:
    """The recipe with overrides written into it, its comments kept."""
    from omegaconf import OmegaConf

    from patch_algorithm.checks import Severity
    from patch_algorithm.checks.names import check_names
    from patch_algorithm.planning.config import read_config, resolved
    from patch_algorithm.planning.known_names import known_names
    from patch_algorithm.planning.yaml_edits import Document

    config = resolved(read_config(str(recipe.path), overrides))
    unknown = [one for one in check_names(config, known_names(config)) if one.severity is not Severity.note]
    if unknown:
        raise ValueError(" ".join(one.found for one in unknown))
    document = Document(recipe.text)
    asked = OmegaConf.to_container(OmegaConf.from_cli(list(overrides)), resolve=False)
    for path, value in _leaves(asked):
        document.set(path, value, "override")
    return document.text


def _leaves(node: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The paths and values of everything that is no mapping, and of empty mappings."""
    if not isinstance(node, dict) or not node:
        yield above, node
        return
    for key, value in node.items():
        yield from _leaves(value, (*above, str(key)))
