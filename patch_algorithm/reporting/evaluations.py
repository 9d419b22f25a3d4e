"""Results of ``patch-level eval`` in a report: those in the folders of its runs, and those that are given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_algorithm.common.tables import table
from patch_algorithm.evaluation.paper import paper_row
from patch_algorithm.evaluation.results import Number, as_result, numbers, read_result
from patch_algorithm.reporting.places import named
from patch_algorithm.reporting.runs import Run

__all__ = ["HEADER", "Evaluation", "evaluations_of", "evaluations_text", "is_result_file"]

HEADER = ("model", "data", "", "measure", "value", "paper, tokens", "paper, patches")


@dataclass(frozen=True)
class Evaluation:
    """One result.

    Attributes:
        name: What the report calls its model: the run whose folder it lies in, or the file.
        path: The file.
        result: What is in it.
    """

    name: str
    path: str
    result: Mapping[str, Any]

    @property
    def numbers(self) -> list[Number]:
        """Its numbers, with the paper's."""
        return numbers(self.result)

    @property
    def data(self) -> str:
        """The name of the data that it is of."""
        return Path(self.result["data"]["path"]).name

    def rows(self) -> list[tuple[str, ...]]:
        """A line of the table for each number; see :data:`HEADER`."""
        row = paper_row(self.result["model"]["parameters"])
        size = "" if row is None else f" ({row.name})"
        return [
            (
                self.name,
                self.data,
                one.name,
                one.measure,
                f"{one.value:.4g}" + ("" if one.error is None else f" ± {one.error:.2g}"),
                *(("–", "–") if one.papers is None else (f"{one.papers[0]:g}{size}", f"{one.papers[1]:g}")),
            )
            for one in self.numbers
        ]

    def to_json(self) -> dict[str, Any]:
        """Primitives, without what bootstrap needs."""
        return {
            "name": self.name,
            "path": self.path,
            "preset": self.result["preset"],
            "data": self.result["data"],
            "model": self.result["model"],
            "numbers": [one._asdict() for one in self.numbers],
            "notes": self.result["notes"],
        }


def is_result_file(place: str) -> bool:
    """Whether an argument names a result, and not a run."""
    return place.endswith(".json") and "://" not in place


def evaluations_of(runs: Sequence[Run], given: Sequence[str]) -> list[Evaluation]:
    """The results of runs.

    Args:
        runs: Their folders are looked through for ``*.json``; what is no result is passed over.
        given: Further files, each perhaps after ``NAME=``.

    Raises:
        ValueError: If a file that is given is no result, or a result is of another version.
    """
    found = []
    for run in runs:
        place = Path(run.path)
        folder = place if place.is_dir() else place.parent
        if "://" in run.path:
            continue
        for path in sorted(folder.glob("*.json")):
            if (result := _result_in(path)) is not None:
                found.append(Evaluation(run.name, str(path), result))
    known = {Path(one.path).resolve() for one in found}
    for text in given:
        name, place = named(text)
        if Path(place).resolve() not in known:
            found.append(Evaluation(name or Path(place).stem, place, read_result(place)))
    return found


def evaluations_text(found: Sequence[Evaluation]) -> list[str]:
    """Results as lines for a terminal."""
    return table([HEADER, *(row for one in found for row in one.rows())]) if found else []


def _result_in(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return as_result(content, str(path))
