"""What the suite has measured as a table and a chart, for its report and for the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.pairs import HEAD

__all__ = ["markdown", "write_docs"]

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


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws every ratio with its interval and its goal."""
    from matplotlib.figure import Figure

    rows = [one for part in found["parts"].values() for one in part["comparisons"]]
    figure = Figure(figsize=(9, 0.8 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(rows):
        low, high = one["interval"]
        axes.plot([low, high], [place, place], color="0.6", linewidth=4, solid_capstyle="butt")
        axes.plot(one["median"], place, "o", color="tab:blue", markersize=4)
        if one["limit"]:
            axes.plot(one["limit"], place, "|", color="tab:red", markersize=11, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), [one["name"] for one in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel("ratio of times: median, 95 % interval (grey), goal (red)")
    figure.savefig(path, metadata={"Date": None})


def write_docs(found: dict[str, Any], folder: Path) -> None:
    """Puts a result in the place of the one that the page has, and draws its chart."""
    page = folder / "benchmarks.md"
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError(f"{page} lacks the lines '{BEGIN}' and '{END}', between which the result goes.")
    draw(found, folder / "benchmarks.svg")
    chart = "![Every ratio with its interval and its goal](benchmarks.svg)"
    page.write_text(f"{before}{BEGIN}\n{chart}\n\n{markdown(found)}{END}{after}", "utf-8")
