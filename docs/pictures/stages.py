"""The stages of the quickstart in raw tokens and in compute, as the package plans them."""

from __future__ import annotations

from pathlib import Path

from composer.core import Time, Timestamp
from drawing import Drawing

from patch_algorithm.algorithm import PatchLevel
from patch_algorithm.planning import RunFile
from patch_algorithm.planning.plan import Plan, make_plan
from patch_algorithm.stages.compute import planned_share

__all__ = ["HEIGHT", "WIDTH", "draw_budget"]

WIDTH, HEIGHT = 640, 236
_RECIPE = Path(__file__).parents[2] / "yamls" / "quickstart.yaml"
_LEFT, _RIGHT, _TALL = 96.0, 640.0, 46.0


def draw_budget(drawing: Drawing) -> None:
    """Draws the shares of both stages in raw tokens, and what they cost, from the drawing's origin."""
    plan = make_plan(RunFile.read(str(_RECIPE), []))
    token_only, run = plan.costs[:2]
    muted, ink = drawing.palette.muted, drawing.palette.theme.ink
    drawing.text(0, 14, "Where the tokens go, and where the compute goes", 15, bold=True)
    drawing.text(0, 34, f"{_described(plan)}: the plan of yamls/quickstart.yaml", color=muted)
    fills = (drawing.palette.patches[0], drawing.palette.plain)
    for y, name, shares in (
        (54.0, "raw tokens", [stage.raw_tokens / run.raw_tokens for stage in run.stages]),
        (124.0, "compute", [(stage.flops or 0) / (token_only.flops or 1) for stage in run.stages]),
    ):
        drawing.text(_LEFT - 12, y + 28, name, anchor="end")
        x = _LEFT
        for stage, share, fill in zip(run.stages, shares, fills, strict=True):
            width = share * (_RIGHT - _LEFT)
            drawing.box(x, y, width, _TALL, fill, radius=0)
            what = f"patch, k={stage.k}" if stage.in_patches else "token"
            drawing.lines(x + width / 2, y + 20, [what, f"{share:.0%}"], 13, anchor="middle")
            x += width
        if x < _RIGHT - 1:
            drawing.box(x, y, _RIGHT - x, _TALL, "none", drawing.palette.theme.faint, radius=0)
            saved = ["less than token-only training", f"{(_RIGHT - x) / (_RIGHT - _LEFT):.0%}"]
            drawing.lines((x + _RIGHT) / 2, y + 20, saved, 13, anchor="middle", color=muted)
    switch = _LEFT + run.stages[0].raw_tokens / run.raw_tokens * (_RIGHT - _LEFT)
    drawing.path([(switch, 46), (switch, 100 + 6)], ink, 1.2, dash="4 3")
    drawing.text(
        _LEFT,
        196,
        f"cost = ratio / k + 1 - ratio = {_cost(plan):.2f} of token-only training on the same tokens",
    )


def _described(plan: Plan) -> str:
    run = plan.costs[1]
    return f"k={run.stages[0].k}, switch after {run.stages[0].steps} of {run.steps} steps"


def _cost(plan: Plan) -> float:
    run = plan.costs[1]
    k, ratio = run.stages[0].k, run.stages[0].steps / run.steps
    length = Time(run.steps, "ba")
    settled = PatchLevel(k=k, ratio=ratio).plan_for(length)
    share = None if settled is None else planned_share(settled, length, Timestamp(), 1.0)
    if share is None or abs(share - (ratio / k + 1 - ratio)) > 1e-9:
        raise ValueError(f"the cost by the formula is not the planned share, {share}")
    return share
