"""Blocks of the pages that are made from the code when the site is built.

A page asks for one by a fence::

    ```{generated} keys patch_algorithm.registry:PatchLevel
    ```

and has its Markdown in the place of it, so that headings, anchors and the search see it as they see the
rest of the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import generated_cli
import generated_errors
import generated_keys

if TYPE_CHECKING:
    from sphinx.application import Sphinx

KINDS: dict[str, Callable[..., str]] = {
    "keys": generated_keys.keys,
    "pile-keys": generated_keys.pile_keys,
    "cli": generated_cli.commands,
    "findings": generated_errors.findings,
    "errors": generated_errors.errors,
}
"""What can be asked for, and the function that writes it."""

_FENCE = re.compile(r"^```\{generated\} (\S+)(?: (.+))?\n```$", re.MULTILINE)


def expand(text: str) -> str:
    """A page with everything that it asks for.

    Raises:
        KeyError: For a kind that is not in :data:`KINDS`.
    """
    return _FENCE.sub(lambda asked: KINDS[asked[1]](*(asked[2] or "").split()).strip(), text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Expands the pages as they are read."""
    app.connect("source-read", _on_source_read)
    # The code is not among the files that Sphinx watches.
    app.connect("env-get-outdated", lambda _, env, *__: [name for name in env.found_docs if _asks(env, name)])
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _on_source_read(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = expand(source[0])


def _asks(env: Any, page: str) -> bool:
    with open(env.doc2path(page), encoding="utf-8") as file:
        return _FENCE.search(file.read()) is not None
