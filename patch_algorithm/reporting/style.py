"""Colours and shapes of the figures, distinguishable without colour vision, on light and dark ground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["DARK", "DASHES", "LIGHT", "MARKERS", "Theme"]


@dataclass(frozen=True)
class Theme:
    """The colours of a page.

    Attributes:
        name: ``light`` or ``dark``.
        ground: Behind everything.
        ink: Text and axes.
        faint: Grid lines and notes.
        band: Behind a patch stage.
        lines: The groups' colours, in order: Okabe and Ito's, made lighter for dark ground.
    """

    name: str
    ground: str
    ink: str
    faint: str
    band: str
    lines: tuple[str, ...]

    def rc(self) -> dict[str, Any]:
        """What matplotlib has to be told."""
        return {
            "figure.facecolor": self.ground,
            "axes.facecolor": self.ground,
            "savefig.facecolor": self.ground,
            "text.color": self.ink,
            "axes.labelcolor": self.ink,
            "axes.edgecolor": self.faint,
            "xtick.color": self.ink,
            "ytick.color": self.ink,
            "grid.color": self.faint,
            "grid.alpha": 0.25,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "svg.hashsalt": "patch-algorithm",
        }


_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6D00", "#4C4C9D")
_LIGHTER = ("#56B4E9", "#F08A4B", "#3CC7A0", "#E8A5CB", "#E6C34A", "#A9A9F0")

LIGHT = Theme("light", "#ffffff", "#1f2328", "#8b949e", "#e9eef6", _OKABE_ITO)
DARK = Theme("dark", "#14181d", "#e6e9ec", "#7d8590", "#232c38", _LIGHTER)

DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.4)),
    (0, (6, 2, 1.4, 2)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1)),
)
"""One for each colour, so that a print in grey can be read."""
MARKERS = ("o", "s", "^", "D", "v", "P")
