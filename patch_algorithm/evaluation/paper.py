"""The paper's own numbers (arXiv 2407.12665, table 3): WikiText-103 test perplexity by size."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PAPER_ROWS", "PaperRow", "paper_row"]

_NEAR = 0.1  # of the paper's number of parameters


class PaperRow(NamedTuple):
    """Perplexity after 360 billion tokens of the Pile, one run each.

    Attributes:
        name: As the paper names the size.
        parameters: Parameters that the name states.
        tokens_only: Perplexity of token-level training.
        patches: Perplexity with k = 4 for two thirds of the tokens.
    """

    name: str
    parameters: float
    tokens_only: float
    patches: float

    def __str__(self) -> str:
        return (
            f"The paper's {self.name} (arXiv 2407.12665, table 3; Pile, 360B tokens, WikiText-103 test): "
            f"{self.tokens_only:.2f} with tokens only, {self.patches:.2f} with patches"
        )


PAPER_ROWS = (
    PaperRow("370M", 370e6, 10.94, 10.68),
    PaperRow("780M", 780e6, 9.18, 9.10),
    PaperRow("1.3B", 1.3e9, 8.18, 8.23),
    PaperRow("2.7B", 2.7e9, 7.11, 7.24),
)


def paper_row(parameters: int) -> PaperRow | None:
    """The paper's model of about that many parameters, if it has one."""
    return next((row for row in PAPER_ROWS if abs(parameters / row.parameters - 1) < _NEAR), None)
