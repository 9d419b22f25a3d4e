"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from patch_algorithm.common.version import __version__
from patch_algorithm.reporting import amounts
from patch_algorithm.reporting.evaluations import HEADER
from patch_algorithm.reporting.plots import Picture, draw
from patch_algorithm.reporting.recovery import recovery_words
from patch_algorithm.reporting.report import Report
from patch_algorithm.reporting.runs import AT_MINIMUM, Run
from patch_algorithm.reporting.style import DARK, LIGHT, Theme

__all__ = ["render"]


def render(report: Report, pictures: Sequence[Picture]) -> str:
    """The page, with the pictures in it, in light and dark."""
    environment = Environment(
        loader=PackageLoader("patch_algorithm.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    subjects = [
        {
            "name": up.subject,
            "speed_up": up.text,
            "verdicts": report.verdicts[2 * number : 2 * number + 2],
        }
        for number, up in enumerate(report.speed_ups)
    ]
    return environment.get_template("page.html.j2").render(
        title="Patch-level training report",
        version=__version__,
        subjects=subjects,
        recoveries=[{"name": r.subject, "text": recovery_words(r)} for r in report.recoveries],
        rows=[
            _row(group.name if len(group.runs) > 1 else "", run, report.compute)
            for group in report.groups
            for run in group.runs
        ],
        findings=[(run.name, finding) for run in report.runs for finding in run.findings],
        notes=report.notes,
        evaluations=[row for one in report.evaluations for row in one.rows()],
        evaluations_header=HEADER,
        pictures=[
            {
                "title": picture.title,
                "caption": picture.caption,
                "light": _inline(picture, LIGHT),
                "dark": _inline(picture, DARK),
            }
            for picture in pictures
        ],
        at_minimum=f"{AT_MINIMUM:.0%}",
        themes=(LIGHT, DARK),
    )


def _inline(picture: Picture, theme: Theme) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(draw(picture, theme, "svg")).decode()


def _row(group: str, run: Run, axis: str) -> dict[str, Any]:
    left, used = run.rate_left, getattr(run.end, axis)
    return {
        "name": run.name,
        "group": group,
        "seed": "–" if run.seed is None else run.seed,
        "stages": " → ".join("tokens" if span.k == 1 else f"k={span.k}" for span in run.spans),
        "state": run.state,
        "good": run.unfinished() is None,
        "steps": f"{run.end.step:,}",
        "tokens": amounts.tokens(run.end.raw_tokens),
        "compute": "–" if used is None else amounts.compute(used, axis),
        "time": amounts.seconds(run.end.seconds),
        "rate": "–" if left is None else f"{left:.0%}",
        "loss": "–" if run.final_loss is None else f"{run.final_loss:.3f}",
    }
