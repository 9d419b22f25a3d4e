"""A short run that keeps its history."""

from __future__ import annotations

from typing import Any

from composer import Trainer
from composer.core import Evaluator
from composer.loggers import InMemoryLogger
from torch.utils.data import DataLoader

from patch_algorithm import PatchLevel
from patch_algorithm.monitoring.history import HistoryLogger, Line
from tests.runs.short import collate, make_model, make_rows, run

ROWS = make_rows(32, 32)
"""Eight batches of four rows of 32: 128 raw tokens, 4 x 8 positions as patches of 4, 16 x 8 as tokens."""
RAN = [(0, 4, 32)] * 4 + [(1, 1, 128)] * 4
"""Stage, k and positions of each step."""

AXES = ("stage", "k", "step", "raw_tokens", "positions", "flops")


def evaluator() -> Evaluator:
    loader: Any = DataLoader(make_rows(4, 8, seed=1), batch_size=4, collate_fn=collate)  # pyright: ignore
    return Evaluator(label="eval", dataloader=loader, metric_names=["LanguageCrossEntropy"])


def recorded(history: HistoryLogger, **changes: Any) -> Trainer:
    changes = {
        "model": make_model(max_seq_len=8),
        "eval_dataloader": evaluator(),
        "eval_interval": "2ba",
        "loggers": [InMemoryLogger(), history],
    } | changes
    weights = changes.pop("target_weights", "uniform")
    algorithm = PatchLevel(k=4, ratio=changes.pop("ratio", "4ba"), target_weights=weights)
    return run(ROWS, [algorithm], **changes)


def axes(line: Line) -> tuple[Any, ...]:
    return tuple(getattr(line.at, name) for name in AXES)
