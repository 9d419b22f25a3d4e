"""What the paper reports by size (arXiv 2407.12665, tables 1 and 3): perplexity and zero-shot tasks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["PAPER_ROWS", "PaperRow", "paper_row"]

_NEAR = 0.1  # of the paper's number of parameters


def _tasks(*tokens_and_patches: tuple[float, float]) -> Mapping[str, tuple[float, float]]:
    names = "mmlu", "hellaswag", "piqa", "winogrande", "arc_easy", "arc_challenge"
    return MappingProxyType(dict(zip(names, tokens_and_patches, strict=True)))


class PaperRow(NamedTuple):
    """What the paper reports of a size after 360 billion tokens of the Pile, one run each.

    Attributes:
        name: As the paper names the size.
        parameters: Parameters that the name states.
        tokens_only: Perplexity of token-level training.
        patches: Perplexity with k = 4 for two thirds of the tokens.
        tasks: Normalised zero-shot accuracy in per cent by task: with tokens only, with patches.
    """

    name: str
    parameters: float
    tokens_only: float
    patches: float
    tasks: Mapping[str, tuple[float, float]]

    def __str__(self) -> str:
        return (
            f"The paper's {self.name} (arXiv 2407.12665, table 3; Pile, 360B tokens, WikiText-103 test): "
            f"{self.tokens_only:.2f} with tokens only, {self.patches:.2f} with patches"
        )


PAPER_ROWS = (
    PaperRow(
        "370M",
        370e6,
        10.94,
        10.68,
        _tasks((22.9, 23.7), (40.8, 41.1), (67.5, 68.0), (53.1, 51.9), (44.3, 46.0), (24.7, 24.2)),
    ),
    PaperRow(
        "780M",
        780e6,
        9.18,
        9.10,
        _tasks((24.4, 24.1), (48.5, 49.1), (69.0, 70.6), (55.4, 54.8), (49.0, 51.3), (26.7, 28.2)),
    ),
    PaperRow(
        "1.3B",
        1.3e9,
        8.18,
        8.23,
        _tasks((23.9, 24.3), (54.5, 54.1), (71.2, 71.6), (57.3, 57.8), (55.1, 55.6), (28.9, 30.4)),
    ),
    PaperRow(
        "2.7B",
        2.7e9,
        7.11,
        7.24,
        _tasks((25.3, 25.4), (62.2, 61.9), (74.3, 74.9), (61.5, 62.4), (61.2, 61.9), (34.3, 34.6)),
    ),
)


def paper_row(parameters: int) -> PaperRow | None:
    """The paper's model of about that many parameters, if it has one."""
    return next((row for row in PAPER_ROWS if abs(parameters / row.parameters - 1) < _NEAR), None)
