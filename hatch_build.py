"""Makes the links of the README absolute in the package's metadata, so that they work on a package index.

In the repository they are relative, and work in every clone and on every host.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(\]\(|(?:src|srcset|href)=\")(?!https?:|#)([^)\"]+)")


def with_absolute_links(text: str, repository: str) -> str:
    """The README with links into the repository.

    Args:
        text: The README, its links relative to the repository's root.
        repository: The repository's address.
    """

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[2].endswith(".svg") else "blob"
        return f"{link[1]}{repository}/{kind}/main/{link[2]}"

    return _LINK.sub(absolute, text)


class AbsoluteLinks(MetadataHookInterface):
    """Hatchling's hook: the README is the description of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets the description."""
        text = Path(self.root, "README.md").read_text("utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_absolute_links(text, metadata["urls"]["Repository"]),
        }
