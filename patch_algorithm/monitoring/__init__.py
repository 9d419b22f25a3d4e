"""What a run costs and learns, stage by stage. It knows the stages of a run, not the algorithm.

The callbacks are loaded on first use, so that reading a history (:mod:`.history_file`) needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patch_algorithm.monitoring.history import HistoryLogger
    from patch_algorithm.monitoring.patch_monitor import PatchMonitor
    from patch_algorithm.monitoring.stage_report import StageReport, StageReportError

__all__ = ["HistoryLogger", "PatchMonitor", "StageReport", "StageReportError"]

_HOMES = {
    "HistoryLogger": "history",
    "PatchMonitor": "patch_monitor",
    "StageReport": "stage_report",
    "StageReportError": "stage_report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
