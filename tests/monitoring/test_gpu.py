"""What only a GPU can show: allocated memory by stage, and MFU."""

from __future__ import annotations

import pytest
from composer import Trainer
from composer.loggers import InMemoryLogger
from torch.utils.data import DataLoader

from patch_algorithm import PatchLevel
from patch_algorithm.monitoring.patch_monitor import PatchMonitor
from patch_algorithm.monitoring.stage_recorder import StageRecorder
from tests.runs.short import collate, make_model, make_rows
from tests.support import metrics


@pytest.mark.gpu
def test_memory_and_mfu_of_each_stage() -> None:
    # Patches of rows of 256 are 64 positions, tokens 256: the token stage needs more memory.
    model = make_model(max_seq_len=256, d_model=128, n_layers=4)
    loader = DataLoader(make_rows(64, 256), batch_size=8, collate_fn=collate)  # pyright: ignore
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        max_duration="8ba",
        algorithms=[PatchLevel(k=4, ratio=0.5)],
        callbacks=[PatchMonitor()],
        loggers=[InMemoryLogger()],
        precision="amp_bf16",
        device="gpu",
        progress_bar=False,
    )
    trainer.fit()
    patch, token = StageRecorder.of(trainer.state).record.stages
    assert 0 < patch.peak_memory < token.peak_memory
    mfu = metrics(trainer, "patch_monitor/mfu")
    assert len(mfu) == 8
    assert all(0 < share < 1 for share in mfu)
