"""What the suite has measured as a table and a chart, for its report and for the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.pairs import HEAD
from patch_algorithm.reporting.style import DARK, LIGHT, Theme

__all__ = ["latest", "markdown", "write_docs"]

_CHART = "".join(
    f"""```{{image}} benchmarks-{name}.svg
:alt: Every ratio with its interval and its goal
:class: only-{name}
```
"""
    for name in ("light", "dark")
)
BEGIN, END = "<!-- begin: measured -->", "<!-- end: measured -->"


def _row(one: dict[str, Any]) -> str:
    low, high = one["interval"]
    return (
        f"| {one['name']} | {one['pairs']} | {one['left_ms']:.1f} | {one['right_ms']:.1f} | "
        f"{one['median']:.3f} | {low:.3f} to {high:.3f} | {one['limit'] or '-'} | {one['verdict']} |"
    )


def markdown(found: dict[str, Any]) -> str:
    """The result as Markdown: command, machine, one table and the notes of each part."""
    lines = [f"Measured on {found['date']}: `{found['command']}`", ""]
    lines += [f"Machine: {found['machine']}; {found['versions']}.", ""]
    for name, part in found["parts"].items():
        lines += [f"**{name}** ({part['seconds']:.0f} s)", ""]
        if part["comparisons"]:
            lines += [*HEAD, *(_row(one) for one in part["comparisons"]), ""]
        lines += [f"- {note}" for note in part["notes"]] + [""]
    return "\n".join(lines)


def latest(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results without the parts that a later one of them has measured anew."""
    kept: list[dict[str, Any]] = []
    seen: set[str] = set()
    for found in reversed(results):
        parts = {name: part for name, part in found["parts"].items() if name not in seen}
        seen |= set(parts)
        kept = [found | {"parts": parts}, *kept] if parts else kept
    return kept


def draw(results: list[dict[str, Any]], path: Path, theme: Theme) -> None:
    """Draws every ratio with its interval and its goal, a panel for each part."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    found = {name: part for one in results for name, part in one["parts"].items()}
    parts = {name: part["comparisons"] for name, part in found.items() if part["comparisons"]}
    rows = [len(comparisons) for comparisons in parts.values()]
    style: dict[Any, Any] = theme.rc() | {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "axes.grid.axis": "x",
    }
    with rc_context(style):
        figure = Figure(figsize=(8.6, 0.9 + 0.27 * sum(rows) + 0.75 * len(parts)), layout="constrained")
        panels = figure.subplots(len(parts), height_ratios=[count + 1.2 for count in rows], squeeze=False)
        for axes, (name, comparisons) in zip(panels[:, 0], parts.items(), strict=True):
            _panel(axes, name, comparisons, theme)
        panels[-1, 0].set_xlabel(
            "ratio of times: dot the median, bar its 95 % interval, tick the goal; lower is better"
        )
        figure.savefig(path, metadata={"Date": None})


def _panel(axes: Any, name: str, comparisons: list[dict[str, Any]], theme: Theme) -> None:
    measured, goal = theme.lines[0], theme.lines[1]
    for place, one in enumerate(comparisons):
        low, high = one["interval"]
        axes.plot([low, high], [place, place], color=measured, alpha=0.4, linewidth=6, solid_capstyle="butt")
        axes.plot(one["median"], place, "o", color=measured, markersize=5)
        if one["limit"]:
            axes.plot(one["limit"], place, "|", color=goal, markersize=13, markeredgewidth=2.4)
        words = f"{one['median']:.3f}" + (
            f"  {one['verdict'].removesuffix(' on this machine')}" if one["limit"] else ""
        )
        axes.annotate(
            words,
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            annotation_clip=False,
        )
    axes.set_title(name, fontweight="bold")
    axes.set_yticks(range(len(comparisons)), [one["name"] for one in comparisons], fontsize=8.5)
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.axvline(1, color=theme.ink, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.tick_params(axis="y", length=0)


def write_docs(results: list[dict[str, Any]], folder: Path) -> None:
    """Puts results in the place of those that the page has, and draws their chart.

    Raises:
        ValueError: If the page lacks the two lines between which results go.
    """
    page = folder / "benchmarks.md"
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError(f"{page} lacks the lines '{BEGIN}' and '{END}', between which the result goes.")
    results = latest(results)
    for theme in (LIGHT, DARK):
        draw(results, folder / f"benchmarks-{theme.name}.svg", theme)
    tables = "\n".join(map(markdown, results))
    page.write_text(f"{before}{BEGIN}\n{_CHART}\n{tables}{END}{after}", "utf-8")
