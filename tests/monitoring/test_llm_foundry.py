"""Schedules, optimizer and monitor from one YAML, through llm-foundry's own training function."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from composer.callbacks import LRMonitor
from composer.optim import CosineAnnealingWithWarmupScheduler
from omegaconf import OmegaConf

from patch_algorithm.monitoring.history import HistoryLogger
from patch_algorithm.monitoring.patch_monitor import PatchMonitor
from patch_algorithm.optim.adamw import AdamW
from patch_algorithm.optim.per_stage import PerStageScheduler
from patch_algorithm.optim.warmup_stable_decay import WarmupStableDecay
from tests.optim.rates import rates, shared_model
from tests.support import config, metrics, mpt, train

DOCS = Path(__file__).parents[2] / "docs"


def test_yaml_run_with_all_of_them(corpus: Path) -> None:
    trainer = train(
        config(
            corpus,
            mpt(no_bias=False),
            algorithms={"patch_level": {"k": 4, "ratio": 0.5}},
            scheduler={
                "name": "per_stage",
                "scheduler": {"name": "cosine_with_warmup", "t_warmup": "1ba", "alpha_f": 0.0},
            },
            optimizer={
                "name": "adamw",
                "lr": 1.0,
                "betas": [0.9, 0.95],
                "weight_decay": 0.1,
                "decay_norms_and_biases": False,
            },
            callbacks={"patch_monitor": {}, "lr_monitor": {}, "speed_monitor": {"window_size": 2}},
        )
    )
    (optimizer,) = trainer.state.optimizers
    assert type(optimizer) is AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    alone = rates(CosineAnnealingWithWarmupScheduler("1ba", alpha_f=0.0), max_duration="3ba")
    assert any(isinstance(callback, LRMonitor) for callback in trainer.state.callbacks)
    for group in ("group0", "group1"):  # logged when the step ends: it is the next one's rate
        assert metrics(trainer, f"lr-AdamW/{group}")[:5] == pytest.approx((alone * 2)[1:])
    assert metrics(trainer, "patch_monitor/compute_share_at_end")[-1] == pytest.approx(0.625)
    assert len(metrics(trainer, "patch_monitor/patch_speedup")) == 1


def yaml_blocks() -> list[Any]:
    found = []
    for page in ("schedules", "monitor"):
        text = (DOCS / f"{page}.md").read_text("utf-8")
        found += [
            pytest.param(block, id=page) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
        ]
    return found


@pytest.mark.parametrize("block", yaml_blocks())
def test_pages_configure_what_there_is(block: str) -> None:
    from llmfoundry.utils.builders import build_callback, build_logger, build_optimizer, build_scheduler

    cfg: Any = OmegaConf.to_container(OmegaConf.create(block))
    for entry in [cfg[section] for section in ("scheduler", "optimizer") if section in cfg]:
        name = entry.pop("name")
        if "lr" in entry:
            assert isinstance(build_optimizer(shared_model(), name, entry), AdamW)
        else:
            assert isinstance(build_scheduler(name, entry), (PerStageScheduler, WarmupStableDecay))
    for name, arguments in cfg.get("callbacks", {}).items():
        assert isinstance(build_callback(name, arguments), PatchMonitor)
    for name, arguments in cfg.get("loggers", {}).items():
        assert isinstance(build_logger(name, arguments), HistoryLogger)
    assert set(cfg) <= {"scheduler", "optimizer", "callbacks", "loggers"}
