"""Draws every picture of the documentation and computes its tables, from the package's own code and results.

python docs/pictures/make.py           # writes them
python docs/pictures/make.py --check   # compares, and fails where one is not what the code draws
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

sys.path.append(str(Path(__file__).parents[2]))  # for the study's own analysis

import badges
import chart
import events
import fold
import logo
import loss
import rooms
import stages
import study
import tables
from drawing import THEMES, Drawing

_HERE = Path(__file__).parent
_MARGIN = 20


def _hero(drawing: Drawing) -> None:
    """Both stages, and a measured run beside them, or below on a narrow screen."""
    drawing.at(_MARGIN, _MARGIN)
    fold.draw_stages(drawing)
    wide = drawing.width > drawing.height
    drawing.at(*((3 * _MARGIN + fold.WIDTH, _MARGIN) if wide else (_MARGIN, 2 * _MARGIN + fold.HEIGHT)))
    chart.draw_runs(drawing)


def _alone(draw: Callable[[Drawing], None]) -> Callable[[Drawing], None]:
    """A picture that is nothing else."""

    def within_margins(drawing: Drawing) -> None:
        drawing.at(_MARGIN, _MARGIN)
        draw(drawing)

    return within_margins


_STAGES = (
    "Eight tokens. In the patch stage four at a time are averaged into a patch, and each of two positions "
    "predicts all four tokens of the next patch. In the token stage each of eight positions predicts the "
    "next token."
)
_RUNS = (
    "Eval loss at token level over compute: a run in patches is high until its switch, then falls to about "
    "that of token-only training on the same compute."
)


def _around(picture: ModuleType) -> tuple[float, float]:
    return picture.WIDTH + 2 * _MARGIN, picture.HEIGHT + 2 * _MARGIN


_BOTH = 3 * _MARGIN + fold.WIDTH + chart.WIDTH + _MARGIN
PICTURES: dict[str, tuple[float, float, str, Callable[[Drawing], None]]] = {
    "hero": (_BOTH, fold.HEIGHT + 2 * _MARGIN - 6, f"{_STAGES} {_RUNS}", _hero),
    "hero-narrow": (
        fold.WIDTH + 2 * _MARGIN,
        fold.HEIGHT + chart.HEIGHT + 3 * _MARGIN,
        f"{_STAGES} {_RUNS}",
        _hero,
    ),
    "fold": (*_around(fold), _STAGES, _alone(fold.draw_stages)),
    "runs": (*_around(chart), _RUNS, _alone(chart.draw_runs)),
    "budget": (
        *_around(stages),
        "The shares of both stages in raw tokens, and what they cost.",
        _alone(stages.draw_budget),
    ),
    "loss": (
        *_around(loss),
        "The loss of one position: the mean of -ln p over k tokens.",
        _alone(loss.draw_loss),
    ),
    "events": (
        *_around(events),
        "What the algorithm does at each of Composer's events.",
        _alone(events.draw_events),
    ),
    "study": (
        *_around(study),
        "Left: our study's difference between patch runs and token-only twins over tokens per parameter, "
        "with intervals. Right: public pairs at equal compute.",
        _alone(study.draw_study),
    ),
    "rooms": (
        rooms.WIDTH + 2 * _MARGIN,
        rooms.height() + 2 * _MARGIN,
        "The rooms of the package.",
        _alone(rooms.draw_rooms),
    ),
}


def drawn() -> Iterator[tuple[Path, str]]:
    """Every file and what belongs into it."""
    for name, (width, height, title, draw) in PICTURES.items():
        for theme, palette in THEMES.items():
            drawing = Drawing(width, height, palette, title)
            draw(drawing)
            yield _HERE / f"{name}-{theme}.svg", drawing.svg()
    name = "logo"
    yield _HERE / f"{name}.svg", logo.logo()
    for name, badge in badges.badges():
        yield _HERE / f"badge-{name}.svg", badge


def main(check: bool) -> int:
    """Writes or compares all pictures; the exit code."""
    files = {**dict(drawn()), **dict(tables.pages())}
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        if check:
            sys.stderr.write(f"{path.name} is not what the code draws: python docs/pictures/make.py\n")
        else:
            path.write_text(files[path], "utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
