"""What is known of patch-level training against token-level training, in numbers with their sources.

Differences are patch minus token, in nats per token where nothing else is said: below zero patches win.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

__all__ = [
    "EQUAL_COMPUTE",
    "EQUAL_DATA",
    "PAPER",
    "SUPERPOSITION",
    "SUPERPOSITION_GRIDS",
    "EqualComputePoint",
    "EqualDataPoint",
    "StudyCell",
    "study_cells",
]

PAPER = "arXiv 2407.12665, tables 3 and 4"
SUPERPOSITION = "arXiv 2605.06546, table 1"


@dataclass(frozen=True)
class EqualDataPoint:
    """A patch run and a token run on the same data.

    Attributes:
        parameters: Of the model.
        tokens: Raw tokens.
        token_perplexity: Of the token run.
        patch_perplexity: Of the patch run.
    """

    parameters: float
    tokens: float
    token_perplexity: float
    patch_perplexity: float

    @property
    def tokens_per_parameter(self) -> float:
        """Raw tokens per parameter."""
        return self.tokens / self.parameters

    @property
    def nats(self) -> float:
        """Patch minus token."""
        return math.log(self.patch_perplexity / self.token_perplexity)


EQUAL_DATA = (
    EqualDataPoint(370e6, 45e9, 12.50, 12.84),
    EqualDataPoint(370e6, 90e9, 11.71, 11.80),
    EqualDataPoint(370e6, 180e9, 11.28, 11.17),
    EqualDataPoint(370e6, 360e9, 10.94, 10.68),
    EqualDataPoint(780e6, 360e9, 9.18, 9.10),
    EqualDataPoint(1.3e9, 360e9, 8.18, 8.23),
    EqualDataPoint(2.7e9, 360e9, 7.11, 7.24),
)
"""The paper's seven: k=4, ratio 2/3, one run each, WikiText-103 perplexity."""


@dataclass(frozen=True)
class EqualComputePoint:
    """A patch run and a token run of the same compute.

    Attributes:
        source: Whose.
        parameters: Of the model.
        tokens_per_parameter: Of the token run; ``None`` where it was not published.
        k: Patch size.
        share: Share of the compute spent in patches: token superposition's r.
        nats: Patch minus token.
        note: What to know of it.
    """

    source: str
    parameters: float
    tokens_per_parameter: float | None
    k: int
    share: float
    nats: float
    note: str = ""


SUPERPOSITION_GRIDS = "arXiv 2605.06546, tables 4 to 6"
_REPLICATION = "github.com/eoghanf/TokenSuperPaper"
_MINIMIND = "HST-MiniMind"
EQUAL_COMPUTE = (
    EqualComputePoint(_MINIMIND, 5e6, 49, 4, 0.3, -0.026, "evaluated on two training batches"),
    EqualComputePoint(_MINIMIND, 5e6, 295, 4, 0.3, -0.047, "evaluated on two training batches"),
    EqualComputePoint("AOMTS", 100e6, None, 6, 0.3, -0.073, "+0.016 where the optimizer was reset"),
    EqualComputePoint(SUPERPOSITION_GRIDS, 270e6, 155, 4, 0.3, -0.067),
    EqualComputePoint(SUPERPOSITION_GRIDS, 270e6, 774, 4, 0.3, -0.040),
    EqualComputePoint(SUPERPOSITION, 270e6, 155, 6, 0.3, -0.070),
    EqualComputePoint(SUPERPOSITION, 270e6, 774, 6, 0.3, -0.044),
    EqualComputePoint(_REPLICATION, 345e6, 1.9, 6, 0.3, -0.038, "independent; both runs end their decay"),
    EqualComputePoint(SUPERPOSITION_GRIDS, 600e6, 70, 4, 0.3, -0.069),
    EqualComputePoint(SUPERPOSITION, 600e6, 70, 6, 0.3, -0.076),
    EqualComputePoint(SUPERPOSITION, 3e9, 14, 6, 0.3, -0.132),
)
"""Public points with k of 4 or 6 and 30 % of the compute in patches, one run each, smallest first.

Those of ours are :func:`study_cells`.
"""


@dataclass(frozen=True)
class StudyCell:
    """A cell of our own study: patch runs and their token-level twins, seed by seed.

    Attributes:
        parameters: Of the model.
        tokens_per_parameter: Of the token run.
        stages: Patch sizes and where each stage ends, as a share of the steps.
        hold: What both arms have in common: ``positions`` (equal compute) or ``tokens`` (equal data).
        seeds: How many pairs.
        bits_per_byte: Mean difference.
        low: Lower end of its 95 % interval, the wider of a bootstrap and Student's.
        high: Upper end.
        nats_per_token: Mean difference by the study's own tokenizer, of 1,024 entries.
    """

    parameters: int
    tokens_per_parameter: float
    stages: tuple[tuple[int, float], ...]
    hold: str
    seeds: int
    bits_per_byte: float
    low: float
    high: float
    nats_per_token: float


def study_cells() -> tuple[StudyCell, ...]:
    """The cells that were finished when ``verdict_study.json`` was written (``benchmarks.study.verdict``)."""
    text = files("patch_algorithm.planning").joinpath("verdict_study.json").read_text("utf-8")
    cells: list[dict[str, Any]] = json.loads(text)["cells"]
    return tuple(StudyCell(**cell | {"stages": tuple(map(tuple, cell["stages"]))}) for cell in cells)
