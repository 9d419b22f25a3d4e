"""From FLOPs to hours: by the peak of a GPU and the share of it in use, or by a run that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from patch_algorithm.planning.costs import RunCost, StageCost

__all__ = ["GPUS", "Bill", "Gpu", "MeasuredSpeed", "PeakSpeed", "Speed", "bill", "gpu_of", "read_speed"]


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        peak: Dense bf16 FLOP/s, without sparsity.
        source: Where the figure stands.
    """

    peak: float
    source: str


GPUS: Mapping[str, Gpu] = {
    "a10": Gpu(125e12, "NVIDIA A10 datasheet"),
    "a100": Gpu(312e12, "NVIDIA A100 datasheet"),
    "l40s": Gpu(362e12, "NVIDIA L40S datasheet"),
    "h100": Gpu(989e12, "NVIDIA H100 datasheet, SXM: 1,979 TFLOP/s with sparsity, halved"),
    "h100-pcie": Gpu(756e12, "NVIDIA H100 datasheet, PCIe: 1,513 TFLOP/s with sparsity, halved"),
    "h200": Gpu(989e12, "NVIDIA H200 datasheet, SXM: 1,979 TFLOP/s with sparsity, halved"),
    "b200": Gpu(2250e12, "NVIDIA DGX B200 datasheet: 36 PFLOP/s for 8 GPUs with sparsity, halved"),
    "mi300x": Gpu(1307e12, "AMD Instinct MI300X datasheet"),
}
"""Peaks by the name given to ``--gpu``."""


class Speed(Protocol):
    """How long a stage takes."""

    @property
    def gpus(self) -> int | None:
        """GPUs that it is the speed of; ``None`` where that is not known."""
        ...

    @property
    def basis(self) -> str:
        """What the times rest on, in words."""
        ...

    @property
    def flops_per_second(self) -> float:
        """Of all GPUs; 0 where that is not known."""
        ...

    def seconds(self, stage: StageCost) -> float | None:
        """Seconds of training; ``None`` where that cannot be told."""
        ...


@dataclass(frozen=True)
class PeakSpeed:
    """A share of the GPUs' peak, the same in all stages.

    Attributes:
        gpus: How many.
        name: Of the GPU.
        peak: FLOP/s of each.
        mfu: The share of the peak that the model's FLOPs reach.
    """

    gpus: int
    name: str
    peak: float
    mfu: float

    @property
    def flops_per_second(self) -> float:
        """Of all GPUs."""
        return self.gpus * self.peak * self.mfu

    @property
    def basis(self) -> str:
        """What the times rest on."""
        return (
            f"{self.gpus} x {self.name} at {100 * self.mfu:.3g} % of {self.peak / 1e12:,.0f} TFLOP/s (bf16, "
            "dense): an assumption, and the same for both stages"
        )

    def seconds(self, stage: StageCost) -> float | None:
        """Seconds by the stage's FLOPs."""
        return None if stage.flops is None else stage.flops / self.flops_per_second


def gpu_of(name: str) -> tuple[str, float]:
    """A GPU's name and peak.

    Args:
        name: One of :data:`GPUS`, or a peak in FLOP/s such as ``450e12``.

    Raises:
        ValueError: If it is neither.
    """
    if name.lower() in GPUS:
        return name.lower(), GPUS[name.lower()].peak
    try:
        peak = float(name)
    except ValueError:
        peak = 0.0
    if not 1e9 <= peak < 1e18:
        raise ValueError(
            f"--gpu {name!r}: expected one of {', '.join(GPUS)}, or its peak in FLOP/s such as 450e12."
        )
    return "GPU", peak


@dataclass(frozen=True)
class _Rate:
    seconds: float
    positions: float
    flops: float


@dataclass(frozen=True)
class MeasuredSpeed:
    """The speed of a run that was measured, stage by stage.

    Attributes:
        path: Its history.
        rates: What its timed steps took and computed, by patch size.
        gpus: GPUs that it ran on; ``None`` where the user has not said.
    """

    path: str
    rates: Mapping[int, _Rate]
    gpus: int | None = None

    @property
    def basis(self) -> str:
        """What the times rest on."""
        sizes = ", ".join("token steps" if k == 1 else f"patch steps of k={k}" for k in sorted(self.rates))
        return f"measured in {self.path}: {sizes}, without the first step of each start and stage"

    def seconds(self, stage: StageCost) -> float | None:
        """Seconds at the measured speed of stages of this k, or else of those nearest to it."""
        rate = self.rates[min(self.rates, key=lambda k: (abs(k - stage.k), k))]
        if stage.flops is not None and rate.flops > 0:
            return stage.flops * rate.seconds / rate.flops
        return stage.positions * rate.seconds / rate.positions

    @property
    def flops_per_second(self) -> float:
        """Of the token steps, or else of those with the smallest k; 0 where the run has counted none."""
        rate = self.rates[min(self.rates)]
        return rate.flops / rate.seconds

    def borrowed(self, cost: RunCost) -> tuple[int, ...]:
        """Patch sizes of a run that were not measured."""
        return tuple(stage.k for stage in cost.stages if stage.k not in self.rates)


def read_speed(path: str, gpus: int | None = None) -> MeasuredSpeed:
    """Reads the speed of a run from its ``history.jsonl``.

    The first step of each start and of each stage is left out: it compiles, allocates and fills caches.

    Raises:
        ValueError: If there is not a history, or it has too few steps.
    """
    from patch_algorithm.monitoring.history import read

    try:
        history = read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--like {path}: it cannot be read ({error}).") from error
    rates: dict[int, _Rate] = {}
    starts = set(history.starts)
    for before, after in zip(history.steps, history.steps[1:], strict=False):
        one, two = before.at, after.at
        if two.step != one.step + 1 or one.step in starts or two.stage != one.stage:
            continue
        flops = (two.flops or 0.0) - (one.flops or 0.0)
        seconds, positions = two.seconds - one.seconds, two.positions - one.positions
        if seconds > 0 and positions > 0:
            old = rates.get(two.k, _Rate(0.0, 0.0, 0.0))
            rates[two.k] = _Rate(old.seconds + seconds, old.positions + positions, old.flops + flops)
    if not rates:
        raise ValueError(
            f"--like {path}: it has {len(history.steps)} steps, none of which can be timed. Give the history "
            "of a run with at least three steps in each stage."
        )
    return MeasuredSpeed(path, rates, gpus)


@dataclass(frozen=True)
class Bill:
    """What a run takes.

    Attributes:
        hours: Wall-clock time of training, without evaluation and checkpoints.
        gpu_hours: That times the GPUs; ``None`` where their number is not known.
        money: That times the price; ``None`` where there is none.
    """

    hours: float
    gpu_hours: float | None = None
    money: float | None = None


def bill(cost: RunCost, speed: Speed, price: float | None = None) -> Bill | None:
    """What a run takes; ``None`` where that cannot be told.

    Args:
        cost: The run.
        speed: How fast it is.
        price: Of a GPU-hour.
    """
    seconds = [speed.seconds(stage) for stage in cost.stages]
    known = [value for value in seconds if value is not None]
    if len(known) < len(seconds):
        return None
    hours = sum(known) / 3600
    gpu_hours = None if speed.gpus is None else hours * speed.gpus
    money = None if price is None or gpu_hours is None else gpu_hours * price
    return Bill(hours, gpu_hours, money)
