"""Where llm-foundry's entry points lead: the only file that knows its registries.

Each name is imported on first use, so that reading the entry points of an environment costs
nothing and a run that does not use this package never imports more of it than this file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patch_algorithm.algorithm import PatchLevel
    from patch_algorithm.data.corpus import builtin_corpus_tokenizer
    from patch_algorithm.data.loader import build_pile_dataloader
    from patch_algorithm.monitoring import HistoryLogger, PatchMonitor, StageReport
    from patch_algorithm.optim import PerStageScheduler, WarmupStableDecay, adamw

__all__ = [
    "HistoryLogger",
    "PatchLevel",
    "PatchMonitor",
    "PerStageScheduler",
    "StageReport",
    "WarmupStableDecay",
    "adamw",
    "build_pile_dataloader",
    "builtin_corpus_tokenizer",
]

_HOMES = {
    "HistoryLogger": "patch_algorithm.monitoring",
    "PatchLevel": "patch_algorithm.algorithm",
    "PatchMonitor": "patch_algorithm.monitoring",
    "PerStageScheduler": "patch_algorithm.optim",
    "StageReport": "patch_algorithm.monitoring",
    "WarmupStableDecay": "patch_algorithm.optim",
    "adamw": "patch_algorithm.optim",
    "build_pile_dataloader": "patch_algorithm.data.loader",
    "builtin_corpus_tokenizer": "patch_algorithm.data.corpus",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
