"""The files of a report: the page, the pictures and the numbers."""

from __future__ import annotations

import json
from pathlib import Path

from patch_algorithm.reporting.page import render
from patch_algorithm.reporting.plots import draw, pictures
from patch_algorithm.reporting.report import Report
from patch_algorithm.reporting.style import LIGHT

__all__ = ["PAGE", "write_report"]

PAGE, NUMBERS = "report.html", "report.json"


def write_report(report: Report, out: Path) -> list[Path]:
    """Writes the page, the pictures and the numbers into a folder, and returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = pictures(report.groups, report.recoveries, report.compute)
    written = [out / PAGE, out / NUMBERS]
    (out / NUMBERS).write_text(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    for picture in drawn:
        written.append(out / f"{picture.name}.png")
        written[-1].write_bytes(draw(picture, LIGHT, "png"))
    (out / PAGE).write_text(render(report, drawn), "utf-8")
    return written
