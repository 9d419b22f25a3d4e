"""A plan: what a run costs, how long it takes, and whether it is worth it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from patch_algorithm.planning.costs import RunCost, StageCost, StepShape, run_costs, step_shape
from patch_algorithm.planning.costs_model import ModelFacts, read_model_facts
from patch_algorithm.planning.costs_speed import Bill, Speed, bill
from patch_algorithm.planning.plan_rates import Rates, rates_of_run
from patch_algorithm.planning.run_file import RunFile
from patch_algorithm.planning.stage_rows import check_stages
from patch_algorithm.planning.verdict import Verdict, judge

__all__ = ["Plan", "make_plan", "ratio_of_share", "share_of_ratio"]


@dataclass(frozen=True)
class Plan:
    """What a run will be.

    Attributes:
        run: Its YAML.
        model: Its model.
        shape: Its step.
        costs: Token-level training on the same data; the run; the run at the compute of the first.
        rates: Its learning rate.
        speed: What times rest on; ``None`` where none were asked for.
        price: Of a GPU-hour.
        verdict: Whether it is worth it.
    """

    run: RunFile
    model: ModelFacts
    shape: StepShape
    costs: tuple[RunCost, RunCost, RunCost]
    rates: Rates
    speed: Speed | None
    price: float | None
    verdict: Verdict

    def bill(self, cost: RunCost) -> Bill | None:
        """What one of the runs takes; ``None`` where that cannot be told."""
        return None if self.speed is None else bill(cost, self.speed, self.price)

    def to_json(self) -> dict[str, Any]:
        """The plan in primitives."""
        verdict = asdict(self.verdict)
        verdict |= {name: getattr(self.verdict, name).value for name in ("equal_data", "equal_compute")}
        return {
            "file": self.run.path,
            "model": {
                "name": self.model.name,
                "parameters": self.model.parameters,
                "vocabulary": self.model.vocabulary,
                "context": self.model.context,
                "fault": self.model.fault,
            },
            "step": {
                "row_tokens": self.shape.row_tokens,
                "rows": self.shape.rows,
                "raw_tokens": self.shape.rows * self.shape.row_tokens,
                "devices": self.shape.devices,
                "seq_len": self.shape.plan.seq_len,
            },
            "runs": [self.cost_to_json(cost) for cost in self.costs],
            "basis_of_times": None if self.speed is None else self.speed.basis,
            "learning_rate": asdict(self.rates),
            "verdict": verdict,
        }

    def cost_to_json(self, cost: RunCost) -> dict[str, Any]:
        """A run, and what it takes, in primitives."""
        taken = self.bill(cost)
        return {
            "name": cost.name,
            "steps": cost.steps,
            "raw_tokens": cost.raw_tokens,
            "positions": cost.positions,
            "flops": cost.flops,
            "share_of_token_only": cost.positions_share,
            "patch_share_of_tokens": cost.patch_share_of_tokens,
            "patch_share_of_compute": cost.patch_share_of_compute,
            "passes": cost.passes,
            "hours": None if taken is None else taken.hours,
            "gpu_hours": None if taken is None else taken.gpu_hours,
            "money": None if taken is None else taken.money,
            "stages": [self._stage(stage) for stage in cost.stages],
        }

    def _stage(self, stage: StageCost) -> dict[str, Any]:
        return {
            "name": stage.name,
            **asdict(stage),
            "positions_per_step": stage.positions_per_step,
            "seconds": None if self.speed is None else self.speed.seconds(stage),
        }


def make_plan(
    run: RunFile, speed: Speed | None = None, devices: int | None = None, price: float | None = None
) -> Plan:
    """Plans a run. Nothing is trained or downloaded but the config of a model on the Hugging Face hub.

    Args:
        run: The run.
        speed: How fast it is.
        devices: Devices that share a step; default: 1.
        price: Of a GPU-hour.

    Raises:
        ValueError: If the YAML is invalid, or leaves open what a step or the run's length is.
    """
    check_stages(run)
    early = step_shape(run, ModelFacts(str(run.model.name), context=run.model.context), devices or 1)
    _ = early.bounds  # raises before the model is built, which takes its time
    model = read_model_facts(run)
    shape = step_shape(run, model, devices or 1)
    costs = run_costs(shape, model)
    rates = rates_of_run(run, shape.clock, shape.bounds)
    return Plan(run, model, shape, costs, rates, speed, price, judge(costs[1], model.parameters))


def ratio_of_share(share: float, k: int) -> float:
    """The paper's ratio, of tokens, of token superposition's r, a share of steps of equal compute.

    Args:
        share: Token superposition's r.
        k: Its s.
    """
    return share * k / (share * k + 1 - share)


def share_of_ratio(ratio: float, k: int) -> float:
    """Token superposition's r of the paper's ratio; the inverse of :func:`ratio_of_share`."""
    return ratio / k / (ratio / k + 1 - ratio)
