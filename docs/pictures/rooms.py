"""The rooms of the package: who may import whom, as the tests enforce it."""

from __future__ import annotations

import ast
from pathlib import Path

from drawing import Drawing

__all__ = ["WIDTH", "draw_rooms", "height"]

WIDTH = 640
_LAWS = Path(__file__).parents[2] / "tests" / "house" / "test_rooms.py"
_ROW, _TALL = 62.0, 30.0


def _below() -> dict[str, set[str]]:
    """What each room may import, from the test that enforces it."""
    for node in ast.parse(_LAWS.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "BELOW" and node.value:
            # `set()` is no literal.
            source = ast.unparse(node.value).replace("set()", "{None}")
            return {name: {one for one in rooms if one} for name, rooms in ast.literal_eval(source).items()}
    raise ValueError(f"{_LAWS} has no BELOW")


def _floors(below: dict[str, set[str]]) -> list[list[str]]:
    """The rooms by floor, the ground floor last; a room stands one floor above the highest that it needs."""
    floor: dict[str, int] = {}
    while len(floor) < len(below):
        for name, needed in below.items():
            if name not in floor and needed <= floor.keys():
                floor[name] = 1 + max((floor[one] for one in needed), default=-1)
    return [[name for name in below if floor[name] == level] for level in range(max(floor.values()), -1, -1)]


def _direct(below: dict[str, set[str]], name: str) -> set[str]:
    """Rooms that a room needs and that no other room it needs leads to."""

    def reached(room: str) -> set[str]:
        return below[room].union(*(reached(one) for one in below[room]))

    return {one for one in below[name] if not any(one in reached(other) for other in below[name] - {one})}


def height() -> float:
    """The height that the picture takes."""
    return 48 + _ROW * len(_floors(_below()))


def draw_rooms(drawing: Drawing) -> None:
    """Draws the rooms from the drawing's origin."""
    below = _below()
    drawing.text(0, 14, "The rooms of the package", 15, bold=True)
    drawing.text(
        0, 34, "an arrow: may import; what follows from other arrows is left out", color=drawing.palette.muted
    )
    places: dict[str, tuple[float, float]] = {}
    for level, names in enumerate(_floors(below)):
        for number, name in enumerate(names):
            places[name] = (WIDTH * (number + 0.5) / len(names), 50 + level * _ROW)
    for name in below:
        for one in sorted(_direct(below, name)):
            (x, y), (to, down) = places[name], places[one]
            drawing.path([(x, y + _TALL), (to, down - 5)], drawing.palette.theme.faint, 1, arrow=True)
    for name, (x, y) in places.items():
        drawing.box(x - 54, y, 108, _TALL, drawing.palette.model, drawing.palette.theme.faint)
        drawing.text(x, y + 20, name, anchor="middle", mono=True)
