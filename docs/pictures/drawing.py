"""Shapes and text of the pictures, as SVG in one of the two themes of the reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

from patch_algorithm.reporting.style import DARK, LIGHT, Theme

__all__ = ["THEMES", "Drawing", "Palette"]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


@dataclass(frozen=True)
class Palette:
    """The colours of a picture: those of the reports, and fills for what they do not draw.

    Attributes:
        theme: The reports' colours.
        patches: A fill for each of the two patches.
        plain: The fill of tokens that belong to no patch.
        model: The fill of the model.
        muted: Text that explains.
    """

    theme: Theme
    patches: tuple[str, str]
    plain: str
    model: str
    muted: str


THEMES = {
    "light": Palette(LIGHT, ("#cfe3f5", "#fbdcc4"), "#eef1f4", "#e3e6ea", "#57606a"),
    "dark": Palette(DARK, ("#1d4260", "#613a1e"), "#262d36", "#2d343d", "#a5adb6"),
}


@dataclass
class Drawing:
    """A picture under construction; everything drawn later lies on top.

    Attributes:
        width: In user units, as all lengths.
        height: The same.
        palette: The colours.
        title: What a screen reader says.
        x: What is added to every x from now on.
        y: The same for y.
    """

    width: float
    height: float
    palette: Palette
    title: str
    x: float = 0.0
    y: float = 0.0
    _parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> None:
        """Moves the origin of what is drawn from now on."""
        self.x, self.y = x, y

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 13,
        anchor: str = "start",
        color: str | None = None,
        bold: bool = False,
        mono: bool = False,
        turn: float = 0,
    ) -> None:
        """Writes a line, its baseline at ``y``."""
        font = f' font-family="{_MONO}"' if mono else ""
        weight = ' font-weight="600"' if bold else ""
        place = f'x="{x + self.x:.4g}" y="{y + self.y:.4g}"'
        if turn:
            place += f' transform="rotate({turn:g} {x + self.x:.4g} {y + self.y:.4g})"'
        self._parts.append(
            f'<text {place} font-size="{size:g}" text-anchor="{anchor}" '
            f'fill="{color or self.palette.theme.ink}"{weight}{font}>{escape(words)}</text>'
        )

    def lines(
        self,
        x: float,
        y: float,
        words: Sequence[str],
        size: float = 13,
        anchor: str = "start",
        color: str | None = None,
    ) -> None:
        """Writes several lines, one below the other."""
        for number, line in enumerate(words):
            self.text(x, y + number * size * 1.35, line, size, anchor, color)

    def box(
        self, x: float, y: float, w: float, h: float, fill: str, edge: str | None = None, radius: float = 4
    ) -> None:
        """Draws a rectangle with rounded corners."""
        stroke = f' stroke="{edge}"' if edge else ""
        self._parts.append(
            f'<rect x="{x + self.x:.4g}" y="{y + self.y:.4g}" width="{w:.4g}" height="{h:.4g}" '
            f'rx="{radius:g}" fill="{fill}"{stroke}/>'
        )

    def path(
        self,
        points: Sequence[tuple[float, float]],
        color: str,
        width: float = 1.5,
        dash: str = "",
        arrow: bool = False,
    ) -> None:
        """Draws a line through points, with an arrow's head at its end if wanted."""
        d = " ".join(
            f"{'L' if n else 'M'}{x + self.x:.2f} {y + self.y:.2f}" for n, (x, y) in enumerate(points)
        )
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<path d="{d}" fill="none" stroke="{color}" stroke-width="{width:g}" '
            f'stroke-linejoin="round" stroke-linecap="round"{dashed}/>'
        )
        if arrow:
            self._head(points[-2], points[-1], color, width)

    def dot(self, x: float, y: float, color: str, radius: float = 3.5) -> None:
        """Draws a disc."""
        self._parts.append(
            f'<circle cx="{x + self.x:.2f}" cy="{y + self.y:.2f}" r="{radius:g}" fill="{color}"/>'
        )

    def _head(self, before: tuple[float, float], end: tuple[float, float], color: str, width: float) -> None:
        dx, dy = end[0] - before[0], end[1] - before[1]
        length = (dx * dx + dy * dy) ** 0.5 or 1.0
        dx, dy, size = dx / length, dy / length, 3.6 * width
        corners = [
            (end[0] + dx * size * 0.4, end[1] + dy * size * 0.4),
            (end[0] - dx * size - dy * size * 0.6, end[1] - dy * size + dx * size * 0.6),
            (end[0] - dx * size + dy * size * 0.6, end[1] - dy * size - dx * size * 0.6),
        ]
        listed = " ".join(f"{x + self.x:.2f},{y + self.y:.2f}" for x, y in corners)
        self._parts.append(f'<polygon points="{listed}" fill="{color}"/>')

    def svg(self) -> str:
        """The finished file."""
        ground = self.palette.theme.ground
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
                f'width="{self.width:g}" height="{self.height:g}" role="img" '
                f'aria-label={quoteattr(self.title)} font-family="{_FONT}">',
                f"<title>{escape(self.title)}</title>",
                f'<rect width="{self.width:g}" height="{self.height:g}" rx="8" fill="{ground}"/>',
                *self._parts,
                "</svg>\n",
            ]
        )
