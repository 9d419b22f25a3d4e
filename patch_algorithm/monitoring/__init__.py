"""What a run costs and learns, stage by stage. It knows the stages of a run, not the algorithm."""

from __future__ import annotations

from patch_algorithm.monitoring.history import HistoryLogger
from patch_algorithm.monitoring.patch_monitor import PatchMonitor
from patch_algorithm.monitoring.stage_report import StageReport, StageReportError

__all__ = ["HistoryLogger", "PatchMonitor", "StageReport", "StageReportError"]
