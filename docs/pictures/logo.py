"""The logo: four tokens above the patch that they make."""

from __future__ import annotations

__all__ = ["logo"]

_TOKEN, _PATCH = "#f2a65a", "#0b62a4"


def logo() -> str:
    """The SVG, which is the site's icon, too."""
    tokens = [
        f'<rect x="{4 + 15 * i}" y="8" width="11" height="16" rx="2" fill="{_TOKEN}"/>' for i in range(4)
    ]
    lines = [f'<path d="M{9.5 + 15 * i} 26 L32 38" stroke="{_PATCH}" stroke-width="2"/>' for i in range(4)]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="64" height="64" role="img">',
            "<title>patch-algorithm</title>",
            *tokens,
            *lines,
            f'<rect x="4" y="38" width="56" height="18" rx="3" fill="{_PATCH}"/>',
            "</svg>\n",
        ]
    )
