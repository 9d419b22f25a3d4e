"""The clock: when a run passes from stage to stage. No tensors and no model."""

from __future__ import annotations

from patch_algorithm.stages.plan import Stage, StageClock, StagePlan
from patch_algorithm.stages.timeline import Timeline

__all__ = ["Stage", "StageClock", "StagePlan", "Timeline"]
