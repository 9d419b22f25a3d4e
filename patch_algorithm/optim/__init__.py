"""Optimizers and learning rate schedules. They know the stages of a run, not the algorithm."""

from __future__ import annotations

from patch_algorithm.optim.adamw import AdamW, adamw
from patch_algorithm.optim.per_stage import PerStageScheduler
from patch_algorithm.optim.warmup_stable_decay import WarmupStableDecay

__all__ = ["AdamW", "PerStageScheduler", "WarmupStableDecay", "adamw"]
