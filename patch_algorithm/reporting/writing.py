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


def write_report(report: Report, out: Path, overwrite: bool = False) -> list[Path]:
    """Writes the page, the pictures and the numbers into a folder, and returns their paths.

    All of them are made before the first is written, so that a picture that cannot be drawn leaves nothing.

    Args:
        report: What to write.
        out: The folder. Its other files stay, also pictures of an earlier report that this one does not have:
            nothing tells them from pictures of the user's own.
        overwrite: Whether files of the same names are replaced.

    Raises:
        ValueError: If one of them exists and is not to be replaced.
    """
    drawn = pictures(report.groups, report.recoveries, report.compute)
    images = {out / f"{picture.name}.png": picture for picture in drawn}
    existing = [path for path in (out / PAGE, out / NUMBERS, *images) if path.exists()]
    if existing and not overwrite:
        raise ValueError(f"{existing[0]} exists. Give --overwrite to replace it, or another --out.")
    numbers = json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
    files = {out / PAGE: render(report, drawn).encode(), out / NUMBERS: numbers.encode()}
    files |= {path: draw(picture, LIGHT, "png") for path, picture in images.items()}
    out.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        write_whole(path, content)
    return list(files)
