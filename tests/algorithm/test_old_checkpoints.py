"""Checkpoints of version 0.1, written when the package was one floor, go on as if written today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from patch_algorithm import PatchLevel
from patch_algorithm.monitoring import PatchMonitor, StageReport
from tests.runs.short import make_model, make_rows, make_trainer, optimizer_tensors, same, saving
from tests.support import metrics, weights

FIXTURES = Path(__file__).parent / "fixtures"
ROWS = make_rows(32, 32)


def trained(folder: Path | None = None, **arguments: Any) -> tuple[Any, PatchLevel]:
    """A run as that of the fixtures: 8 batches, half of them in patches of 4."""
    algorithm = PatchLevel(k=4, ratio=0.5, seq_len=8)
    if folder is not None:
        arguments |= saving(folder)
    callbacks = [PatchMonitor(), StageReport()]
    model = make_model(max_seq_len=8)
    trainer = make_trainer(ROWS, [algorithm], model=model, callbacks=callbacks, **arguments)
    trainer.fit()
    return trainer, algorithm


@pytest.mark.parametrize(("name", "batch"), [("v0.1-patch-stage.pt", 3), ("v0.1-token-stage.pt", 6)])
def test_resumed_bit_by_bit(name: str, batch: int, tmp_path: Path) -> None:
    resumed, algorithm = trained(load_path=str(FIXTURES / name))
    assert metrics(resumed, "patch_level/stage") == ([0] * 4 + [1] * 4)[batch:]
    assert algorithm.compute_share == pytest.approx(0.625)

    # The same weights, optimizer state and clock under today's own bookkeeping.
    trained(tmp_path)
    old = torch.load(FIXTURES / name, weights_only=False)
    new = torch.load(tmp_path / f"ba{batch}.pt", weights_only=False)
    for kept in ("algorithms", "callbacks"):
        old["state"][kept] = new["state"][kept]
    torch.save(old, tmp_path / "mixed.pt")
    other, _ = trained(load_path=str(tmp_path / "mixed.pt"))
    assert metrics(resumed, "loss/train/total") == metrics(other, "loss/train/total")
    assert same(weights(resumed).values(), weights(other).values())
    assert same(optimizer_tensors(resumed), optimizer_tensors(other))
