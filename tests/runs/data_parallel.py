"""Trains the named cases on however many ranks there are, and writes down what they logged.

Started by the launcher as ``python -m tests.runs.data_parallel OUTPUT CORPUS CASE...``, and called by
the tests in their own process for one rank.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.utils import dist

from patch_algorithm import PatchLevel
from patch_algorithm.monitoring.patch_monitor import PatchMonitor
from patch_algorithm.monitoring.stage_recorder import StageRecorder
from tests.ranks import write_down
from tests.runs.short import Row, make_model, make_padded_rows, make_rows, run
from tests.support import config, metrics, mpt, train

GLOBAL_BATCH = 4
LOGGED = (
    "loss/train/total",
    "patch_level/loss",
    "patch_level/token_accuracy",
    "patch_level/stage",
    "patch_monitor/flops",
    "patch_monitor/compute_share_at_end",
)


def in_memory(rows: list[Row], microbatch: int, **changes: Any) -> Trainer:
    return run(
        rows,
        [PatchLevel(k=4, ratio=0.5)],
        model=make_model(**changes),
        optimizer=torch.optim.SGD,
        lr=0.1,
        max_duration="6ba",
        batch=GLOBAL_BATCH // dist.get_world_size(),
        device_train_microbatch_size=microbatch,
        callbacks=[PatchMonitor()],
    )


def from_mds(corpus: Path, model: dict[str, Any], **changes: Any) -> Trainer:
    algorithms = {"patch_level": {"k": 4, "ratio": 0.5}}
    changes["callbacks"] = {"patch_monitor": {}}
    changes["device_train_microbatch_size"] = GLOBAL_BATCH // dist.get_world_size()
    return train(config(corpus, model, algorithms=algorithms, **changes))


def llama(corpus: Path) -> dict[str, Any]:
    """A tiny Llama as an llm-foundry model config."""
    from transformers import LlamaConfig

    folder = corpus / f"llama{dist.get_global_rank()}of{dist.get_world_size()}"
    LlamaConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
    ).save_pretrained(folder)
    return {
        "name": "hf_causal_lm",
        "pretrained_model_name_or_path": str(folder),
        "pretrained": False,
    }


def run_case(name: str, corpus: Path) -> Trainer:
    """Trains six batches, three of them in patches."""
    fsdp: dict[str, Any] = {"fsdp_config": {"sharding_strategy": "FULL_SHARD", "mixed_precision": "PURE"}}
    if dist.get_world_size() == 1:
        fsdp = {}
    cases = {
        "packed": lambda: in_memory(make_rows(24, 16), 2),
        # Every second row comes to the same rank: one of two has far more to predict than the other.
        "padded unevenly": lambda: in_memory(unevenly_padded(), 1),
        "cut, in microbatches": lambda: in_memory(make_rows(24, 32), 1, max_seq_len=8),
        "mds": lambda: from_mds(corpus, mpt()),
        "fsdp, tied mpt": lambda: from_mds(corpus, mpt(), **fsdp),
        "fsdp, llama": lambda: from_mds(corpus, llama(corpus), **fsdp),
    }
    return cases[name]()


def unevenly_padded() -> list[Row]:
    rows = make_padded_rows(24, 16)
    for row in rows[1::2]:
        row["attention_mask"][9:] = 0
        row["labels"][9:] = -100
    return rows


def run_cases(names: list[str], corpus: Path) -> dict[str, dict[str, list[float]]]:
    """What each case logged, by name."""
    logged = {}
    for name in names:
        trainer = run_case(name, corpus)
        logged[name] = {key: metrics(trainer, key) for key in LOGGED}
        stages = StageRecorder.of(trainer.state).record.stages
        logged[name]["positions"] = [stage.total.positions for stage in stages]
        logged[name]["raw tokens"] = [float(stage.total.tokens) for stage in stages]
        logged[name]["sharded"] = [
            float(any(type(p).__name__ == "DTensor" for p in trainer.state.model.parameters()))
        ]
    return logged


if __name__ == "__main__":
    write_down(sys.argv[1], run_cases(sys.argv[3:], Path(sys.argv[2])))
