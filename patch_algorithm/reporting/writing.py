"""The files of a report: the page, the pictures and the numbers."""

from __future__ import annotations

import json
from pathlib import Path

from patch_algorithm.common.files import write_whole
from patch_algorithm.reporting.page import render
from patch_algorithm.reporting.plots import draw, pictures
from patch_algorithm.reporting.report import Report
from patch_algorithm.reporting.style import LIGHT

__all__ = ["PAGE", "write_report"]

PAGE, NUMBERS = "report.html", "report.json"


def write_report(report: Report, out: Path) -> list[Path]:
    """Writes the page, the pictures and the numbers into a folder, and returns their paths.

    All of them are made before the first is written, so that a picture that cannot be drawn leaves nothing.
    """
    drawn = pictures(report.groups, report.recoveries, report.compute)
    numbers = json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
    files = {out / PAGE: render(report, drawn).encode(), out / NUMBERS: numbers.encode()}
    files |= {out / f"{picture.name}.png": draw(picture, LIGHT, "png") for picture in drawn}
    out.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        write_whole(path, content)
    return list(files)
