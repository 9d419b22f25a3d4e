"""The command ``patch-level plan``."""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patch_algorithm.common.command_line import errors_as_exit_codes, examples
from patch_algorithm.common.options import OUTPUT, AsJson, Overrides
from patch_algorithm.common.redaction import redact, redact_values

if TYPE_CHECKING:
    from patch_algorithm.planning.costs_speed import Speed
    from patch_algorithm.planning.plan import Plan
    from patch_algorithm.planning.plan_suggest import Suggestion

__all__ = ["add_plan"]

_TIME, _PROPOSAL, _TWIN, _UNITS = "Time and money", "A proposal", "The baseline", "Units"


class Same(str, Enum):
    """What the twin has in common with the run."""

    compute = "compute"
    data = "data"


def add_plan(app: typer.Typer) -> None:
    """Adds the command to ``patch-level``."""
    app.command(
        rich_help_panel="Before a run",
        epilog=examples(
            "patch-level plan run.yaml --gpus 8 --gpu h100 --mfu 0.4 --price 2.5",
            "patch-level plan run.yaml --like earlier/history.jsonl --picture plan.svg",
            "patch-level plan run.yaml --suggest --gpu-hours 500 --gpu h100",
            "patch-level plan run.yaml --twin baseline.yaml --same compute",
            "patch-level plan --r 0.3 --s 6",
            codes=("0 planned, whatever the verdict", "2 bad input"),
        ),
    )(plan)


def plan(
    config: Annotated[
        str | None, typer.Argument(metavar="[RUN.yaml]", help="The run's configuration.")
    ] = None,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs that share a step.", rich_help_panel=_TIME)
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="a100, h100, h200, b200, ..., or a peak in FLOP/s.", rich_help_panel=_TIME
        ),
    ] = None,
    mfu: Annotated[
        float, typer.Option(help="The share of the peak that you expect to reach.", rich_help_panel=_TIME)
    ] = 0.4,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="HISTORY",
            help="Take times from a measured run's history.jsonl instead.",
            rich_help_panel=_TIME,
        ),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of a GPU-hour.", rich_help_panel=_TIME)] = None,
    suggest: Annotated[
        bool,
        typer.Option(
            "--suggest",
            help="Propose k, ratio, length and schedule for a budget: one of the next three options.",
            rich_help_panel=_PROPOSAL,
        ),
    ] = False,
    tokens: Annotated[
        float | None, typer.Option(help="Raw tokens that you have.", rich_help_panel=_PROPOSAL)
    ] = None,
    flops: Annotated[float | None, typer.Option(help="FLOPs to spend.", rich_help_panel=_PROPOSAL)] = None,
    gpu_hours: Annotated[
        float | None,
        typer.Option(
            help="GPU-hours to spend; with --gpu and --mfu, or --like and --gpus.", rich_help_panel=_PROPOSAL
        ),
    ] = None,
    twin: Annotated[
        str | None,
        typer.Option(metavar="OUT.yaml", help="Write the token-only twin of the run.", rich_help_panel=_TWIN),
    ] = None,
    same: Annotated[
        Same, typer.Option(help="What the twin has in common with the run.", rich_help_panel=_TWIN)
    ] = Same.compute,
    r: Annotated[
        float | None,
        typer.Option("--r", help="Token superposition's r, in this package's units.", rich_help_panel=_UNITS),
    ] = None,
    s: Annotated[
        int | None, typer.Option("--s", help="Token superposition's s.", rich_help_panel=_UNITS)
    ] = None,
    as_json: AsJson = False,
    picture: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw stages, learning rate and compute (.svg, .png, .pdf).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Say what a run will cost, and whether it is worth it.

    Nothing is trained and no GPU is needed: the model is built without weights and its FLOPs are counted.
    """
    with errors_as_exit_codes("plan"):
        given: dict[str, Any] = {
            "config": config,
            "overrides": overrides,
            "gpus": gpus,
            "gpu": gpu,
            "mfu": mfu,
            "like": like,
            "price": price,
            "suggest": suggest,
            "tokens": tokens,
            "flops": flops,
            "gpu_hours": gpu_hours,
            "twin": twin,
            "same": same,
            "r": r,
            "s": s,
            "as_json": as_json,
            "picture": picture,
        }
        _check(given)
        said: dict[str, Any] = {}
        if r is not None and s is not None:
            said |= _converted(r, s, as_json)
        if config is not None:
            said |= _planned(given)
        if as_json:
            typer.echo(json.dumps(redact_values(said), indent=2, ensure_ascii=False))


def _check(given: dict[str, Any]) -> None:
    """Checks what can be checked before anything is read.

    Raises:
        ValueError: If options exclude each other or are out of range.
    """
    r, s = given["r"], given["s"]
    if (r is None) != (s is None):
        raise ValueError("--r and --s go together, such as --r 0.3 --s 6.")
    if r is not None and not (0 <= r <= 1 and s >= 1):
        raise ValueError(f"--r {r} --s {s}: expected r between 0 and 1, and s of at least 1.")
    if given["config"] is None and r is None:
        raise ValueError("give the run's YAML, or --r and --s to convert token superposition's units.")
    for name in ("tokens", "flops", "gpu_hours", "price"):
        if given[name] is not None and not 0 < given[name] < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} {given[name]:g}: expected a number above 0.")
    if not 0 < given["mfu"] <= 1:
        raise ValueError(f"--mfu {given['mfu']:g}: expected a share above 0 and of at most 1, such as 0.4.")
    if given["gpu"] is not None and given["like"] is not None:
        raise ValueError(
            "--gpu and --like are mutually exclusive: times come from a peak, or from a measured run."
        )
    if given["price"] is not None and given["gpus"] is None and given["like"] is not None:
        raise ValueError("--price with --like needs --gpus, the number of GPUs of the measured run.")
    budgets = [name for name in ("tokens", "flops", "gpu_hours") if given[name] is not None]
    if given["suggest"] and len(budgets) != 1:
        raise ValueError("--suggest needs exactly one of --tokens, --flops and --gpu-hours.")
    if budgets and not given["suggest"]:
        raise ValueError(f"--{budgets[0].replace('_', '-')} is a budget for --suggest; add --suggest.")


def _converted(r: float, s: int, as_json: bool) -> dict[str, Any]:
    from patch_algorithm.planning.plan import ratio_of_share
    from patch_algorithm.planning.plan_text import conversion, wrapped

    if not as_json:
        typer.echo("\n".join(wrapped(conversion(r, s))))
    return {"conversion": {"r": r, "s": s, "k": s, "ratio": ratio_of_share(r, s)}}


def _planned(given: dict[str, Any]) -> dict[str, Any]:
    from patch_algorithm.planning.plan import make_plan
    from patch_algorithm.planning.plan_picture import check_picture, draw
    from patch_algorithm.planning.plan_text import as_text
    from patch_algorithm.planning.run_file import RunFile

    run = RunFile.read(given["config"], given["overrides"] or ())
    if given["picture"] is not None:
        check_picture(given["picture"])
    plan = make_plan(run, _speed(given), given["gpus"], given["price"])
    said = plan.to_json()
    lines = [as_text(plan)]
    if given["suggest"]:
        found = _suggestion(plan, given)
        lines.append(_suggestion_text(plan, found))
        said["suggestion"] = {
            "k": found.k,
            "ratio": found.ratio,
            "yaml": found.yaml,
            "reasons": found.reasons,
            "runs": [plan.cost_to_json(cost) for cost in found.costs],
        }
    if given["twin"] is not None:
        from patch_algorithm.planning.twin import write_twin

        written = write_twin(plan, given["twin"], given["same"].value, given["overrides"] or ())
        lines.append("\n".join([f"Twin: {written.path}, {written.steps:,} steps", *written.changes]))
        said["twin"] = {"path": str(written.path), "steps": written.steps, "changes": written.changes}
    if given["picture"] is not None:
        draw(plan, given["picture"])
        lines.append(f"Picture: {given['picture']}")
        said["picture"] = given["picture"]
    if not given["as_json"]:
        typer.echo(redact("\n\n".join(lines)))
    return said


def _speed(given: dict[str, Any]) -> Speed | None:
    from patch_algorithm.planning.costs_speed import PeakSpeed, gpu_of, read_speed

    if given["like"] is not None:
        return read_speed(given["like"], given["gpus"])
    if given["gpu"] is None:
        if given["price"] is not None:
            raise ValueError("--price needs hours: give --gpu, or --like with --gpus.")
        return None
    name, peak = gpu_of(given["gpu"])
    return PeakSpeed(given["gpus"] or 1, name, peak, given["mfu"])


def _suggestion(plan: Plan, given: dict[str, Any]) -> Suggestion:
    from patch_algorithm.planning.plan_suggest import Budget, suggest

    if given["tokens"] is not None:
        budget = Budget(tokens=given["tokens"], said=f"--tokens {given['tokens']:g}")
    elif given["flops"] is not None:
        budget = Budget(flops=given["flops"], said=f"--flops {given['flops']:g}")
    else:
        hours = given["gpu_hours"]
        budget = Budget(flops=hours * 3600 * _flops_of_a_gpu(plan.speed), said=f"--gpu-hours {hours:g}")
    return suggest(plan.shape, plan.model, budget)


def _flops_of_a_gpu(speed: Speed | None) -> float:
    """FLOPs of a GPU in a second."""
    from patch_algorithm.planning.costs_speed import MeasuredSpeed

    if speed is None or speed.gpus is None:
        raise ValueError("--gpu-hours needs --gpu and --mfu, or --like and --gpus.")
    if isinstance(speed, MeasuredSpeed) and not speed.flops_per_second:
        raise ValueError(
            f"--gpu-hours cannot be turned into FLOPs: {speed.path} records none. Give --gpu and --mfu "
            "instead of --like, or the budget as --flops or --tokens."
        )
    return speed.flops_per_second / speed.gpus


def _suggestion_text(plan: Plan, found: Suggestion) -> str:
    from patch_algorithm.planning.plan_text import cost_table, wrapped

    lines = ["Suggestion", *cost_table(plan, found.costs)]
    for reason in found.reasons:
        lines += wrapped(reason, "  - ")
    return "\n".join([*lines, "", *(f"    {line}" for line in found.yaml.splitlines())])
