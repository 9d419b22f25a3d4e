"""Code blocks whose lines are longer than the page is wide are wrapped, so that none scrolls sideways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FITS = 100
"""Characters of a line that fit beside both menus."""
FITS_WITHOUT_CONTENTS = 150
"""The same on a page that hides its table of contents."""


def setup(app: Sphinx) -> dict[str, Any]:
    """Marks the blocks of each page that is read."""
    app.connect("doctree-read", _mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _mark(app: Sphinx, doctree: nodes.document) -> None:
    roomy = "hide-toc" in app.env.metadata[app.env.docname]
    for block in doctree.findall(nodes.literal_block):
        longest = max(map(len, block.astext().splitlines()), default=0)
        if longest > (FITS_WITHOUT_CONTENTS if roomy else FITS):
            block["classes"].append("wrapped")
