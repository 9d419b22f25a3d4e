"""The tables that the package's own code computes, written between marks in the pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import study_tables
from composer.core import Time, Timestamp

from patch_algorithm.algorithm import PatchLevel
from patch_algorithm.planning.verdict_evidence import EQUAL_COMPUTE, EQUAL_DATA, study_cells
from patch_algorithm.stages.compute import planned_share

__all__ = ["cost", "pages", "size"]

_DOCS = Path(__file__).parents[1]
_RATIOS = tuple(Fraction(one) for one in ("1/4", "1/3", "1/2", "2/3", "3/4", "4/5"))
_KS = (2, 3, 4, 6, 8, 16)


def cost(k: int, ratio: Fraction) -> float:
    """Compute of a whole run as a share of token-only training on the same tokens."""
    length = Time(ratio.denominator * 1000, "ba")
    plan = PatchLevel(k=k, ratio=str(ratio)).plan_for(length)
    share = None if plan is None else planned_share(plan, length, Timestamp(), 1.0)
    if share is None:
        raise ValueError(f"k={k}, ratio={ratio} has no cost")
    return share


def _costs() -> str:
    lines = [f"| `ratio` | {' | '.join(f'k = {k}' for k in _KS)} |", f"|---|{'--:|' * len(_KS)}"]
    lines += [f"| {ratio} | {' | '.join(f'{cost(k, ratio):.2f}' for k in _KS)} |" for ratio in _RATIOS]
    return "\n".join(lines)


def _units() -> str:
    lines = ["| k = s | `ratio` | cost | r |", "|--:|--:|--:|--:|"]
    for k, ratio in (
        (2, "1/2"),
        (4, "1/4"),
        (4, "1/2"),
        (4, "2/3"),
        (4, "4/5"),
        (6, "18/25"),
        (8, "2/3"),
        (16, "1/2"),
    ):
        share = Fraction(ratio)
        whole = cost(k, share)
        lines.append(f"| {k} | {float(share):.2f} | {whole:.2f} | {float(share) / k / whole:.2f} |")
    return "\n".join(lines)


def _equal_data() -> str:
    lines = [
        "| parameters | tokens | tokens per parameter | token-only | patches | difference, nats |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for point in sorted(EQUAL_DATA, key=lambda one: one.tokens_per_parameter):
        lines.append(
            f"| {size(point.parameters)} | {point.tokens / 1e9:.0f}B | {point.tokens_per_parameter:.0f} | "
            f"{point.token_perplexity:.2f} | {point.patch_perplexity:.2f} | {_signed(point.nats)} |"
        )
    return "\n".join(lines)


def _equal_compute() -> str:
    lines = [
        "| source | parameters | tokens per parameter | k | r | nats | note |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for cell in study_cells():
        if cell.hold == "positions":
            (k, share), *_ = cell.stages
            tokens = f"{cell.tokens_per_parameter:g}"
            bits = (
                f"{_signed(cell.bits_per_byte)} bits per byte ({_signed(cell.low)} to {_signed(cell.high)})"
            )
            lines.append(
                f"| our study | {size(cell.parameters)} | {tokens} | {k} | {share:g} | "
                f"{_signed(cell.nats_per_token)} | {cell.seeds} seeds; {bits} |"
            )
    for point in EQUAL_COMPUTE:
        tokens = "-" if point.tokens_per_parameter is None else f"{point.tokens_per_parameter:g}"
        lines.append(
            f"| {point.source} | {size(point.parameters)} | {tokens} | {point.k} | {point.share:g} | "
            f"{_signed(point.nats)} | {point.note} |"
        )
    return "\n".join(lines)


def size(parameters: float) -> str:
    """Such as ``370M``."""
    return f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


def _signed(nats: float) -> str:
    return f"{nats:+.3f}".replace("-", "−")


_TABLES: dict[str, Callable[[], str]] = {
    "cost": _costs,
    "units": _units,
    "equal data": _equal_data,
    "equal compute": _equal_compute,
    **study_tables.TABLES,
}


def pages() -> Iterator[tuple[Path, str]]:
    """Every page with the marks of a computed table, and what it should hold."""
    for path in sorted(_DOCS.glob("*.md")):
        before = text = path.read_text("utf-8")
        for name, table in _TABLES.items():
            begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
            if begin in text:
                head, _, rest = text.partition(begin)
                text = f"{head}{begin}{table()}\n{end}{rest.partition(end)[2]}"
        if "<!-- begin: " in before:
            yield path, text
