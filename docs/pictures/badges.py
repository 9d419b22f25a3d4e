"""The badges of the README, from what the package declares."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

__all__ = ["badges"]

_LEFT, _RIGHT, _TALL = "#444c56", "#0b62a4", 20
_SHOWN = {"torch": "torch", "mosaicml": "composer", "llm-foundry": "llm-foundry"}


def badges() -> Iterator[tuple[str, str]]:
    """The name and the SVG of each badge."""
    declared = metadata("patch-algorithm")
    pythons = SpecifierSet(declared["Requires-Python"])
    minors = [minor for minor in range(40) if f"3.{minor}.0" in pythons]
    yield "python", _badge("python", f"3.{minors[0]} to 3.{minors[-1]}")
    for line in declared.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        if requirement.name in _SHOWN and requirement.marker is None:
            lowest = next(one.version for one in requirement.specifier if one.operator == ">=")
            name = _SHOWN[requirement.name]
            yield name, _badge(name, ".".join(lowest.split(".")[:2]))
    yield "licence", _badge("licence", declared["License-Expression"])


def _badge(name: str, value: str) -> str:
    left, right = 14 + 6.4 * len(name), 14 + 6.4 * len(value)
    whole = left + right
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole:.0f}" height="{_TALL}" role="img" '
            f'aria-label="{name}: {value}" font-family="Verdana, DejaVu Sans, sans-serif" font-size="11">',
            f"<title>{name}: {value}</title>",
            f'<clipPath id="r"><rect width="{whole:.0f}" height="{_TALL}" rx="3"/></clipPath>',
            f'<g clip-path="url(#r)"><rect width="{left:.1f}" height="{_TALL}" fill="{_LEFT}"/>',
            f'<rect x="{left:.1f}" width="{right:.1f}" height="{_TALL}" fill="{_RIGHT}"/></g>',
            '<g fill="#fff" text-anchor="middle">',
            f'<text x="{left / 2:.1f}" y="14" textLength="{left - 12:.0f}">{name}</text>',
            f'<text x="{left + right / 2:.1f}" y="14" textLength="{right - 12:.0f}">{value}</text></g>',
            "</svg>\n",
        ]
    )
