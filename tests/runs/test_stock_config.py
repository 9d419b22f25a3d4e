"""llm-foundry's own small CPU pre-training config, run by llm-foundry's own code, with two lines more."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llmfoundry.command_utils import train_from_yaml
from omegaconf import OmegaConf
from streaming import MDSWriter

from tests.support import metrics

ROW = 128
_LENGTH = "${variables.max_seq_len}"
_SEED = "${variables.global_seed}"
_DATA = {"local": "${variables.data_local}", "remote": "${variables.data_remote}"}

SMALL_CPU: dict[str, Any] = {
    "variables": {
        "data_local": "./my-copy-c4",
        "data_remote": None,
        "max_seq_len": ROW,
        "global_seed": 17,
        "run_name": "mpt_causal_lm_cpu",
    },
    "max_seq_len": _LENGTH,
    "run_name": "${variables.run_name}",
    "model": {
        "name": "mpt_causal_lm",
        "init_device": "cpu",
        "d_model": 16,
        "n_heads": 4,
        "n_layers": 4,
        "expansion_ratio": 5,
        "max_seq_len": _LENGTH,
        "vocab_size": 50368,
        "attn_config": {"attn_impl": "torch"},
        "loss_fn": "torch_crossentropy",
    },
    "tokenizer": {"name": "EleutherAI/gpt-neox-20b", "kwargs": {"model_max_length": _LENGTH}},
    "train_loader": {
        "name": "text",
        "dataset": _DATA | {"split": "train", "shuffle": True, "max_seq_len": _LENGTH, "shuffle_seed": _SEED},
        "drop_last": True,
        "num_workers": 2,
    },
    "eval_loader": {
        "name": "text",
        "dataset": _DATA | {"split": "val", "shuffle": False, "max_seq_len": _LENGTH, "shuffle_seed": _SEED},
        "drop_last": False,
        "num_workers": 2,
    },
    "scheduler": {"name": "cosine_with_warmup", "t_warmup": "100ba", "alpha_f": 0.1},
    "optimizer": {
        "name": "decoupled_adamw",
        "lr": 6.0e-4,
        "betas": [0.9, 0.95],
        "eps": 1.0e-8,
        "weight_decay": 0.0,
    },
    "algorithms": {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}},
    "max_duration": "10ba",
    "eval_interval": "5ba",
    "eval_first": False,
    "eval_subset_num_batches": 5,
    "global_train_batch_size": 256,
    "autoresume": False,
    "seed": _SEED,
    "device_eval_batch_size": 16,
    "device_train_microbatch_size": 16,
    "precision": "fp32",
    "fsdp_config": {
        "sharding_strategy": "FULL_SHARD",
        "mixed_precision": "PURE",
        "activation_checkpointing": False,
        "activation_checkpointing_reentrant": False,
        "activation_cpu_offload": False,
        "limit_all_gathers": True,
    },
    "progress_bar": False,
    "log_to_console": True,
    "console_log_interval": "1ba",
    "callbacks": {
        "speed_monitor": {"window_size": 10},
        "lr_monitor": {},
        "memory_monitor": {},
        "runtime_estimator": {},
    },
    "save_overwrite": True,
    "save_num_checkpoints_to_keep": 1,
}
"""The settings of ``scripts/train/yamls/pretrain/mpt-small-cpu.yaml`` of llm-foundry's repository."""

TWO_LINES = {"patch_level": {"k": 4, "ratio": 0.67}}
SMALLER = [
    "global_train_batch_size=8",
    "device_train_microbatch_size=4",
    "eval_interval=0",
    "max_duration=4ba",
    "loggers={inmemory: {}}",
    # Workers of two runs in one process wait for each other in streaming's shared memory.
    *(
        f"{loader}.{setting}"
        for loader in ("train_loader", "eval_loader")
        for setting in ("num_workers=0", "prefetch_factor=null", "persistent_workers=false")
    ),
]


def write_config(corpus: Path, folder: Path, rows: int, **changes: Any) -> str:
    """Writes the stock config with a data path, a local tokenizer and the two lines."""
    rng = np.random.default_rng(0)
    for split, number in (("train", rows), ("val", 16)):
        columns = {"tokens": f"ndarray:uint16:{ROW}"}
        with MDSWriter(out=str(folder / "data" / split), columns=columns) as out:
            for start in rng.integers(0, 94, size=number):
                tokens = (start + np.cumsum(rng.integers(1, 4, size=ROW))) % 94
                out.write({"tokens": tokens.astype(np.uint16)})
    cfg = copy.deepcopy(SMALL_CPU)
    cfg["variables"]["data_local"] = str(folder / "data")
    cfg["tokenizer"]["name"] = str(corpus / "tokenizer")  # the stock one is on the hub
    cfg["algorithms"] |= TWO_LINES
    path = folder / "mpt-small-cpu.yaml"
    OmegaConf.save(OmegaConf.create(cfg | changes), path)
    return str(path)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_in_process(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rows of 128 tokens are no longer than the model's context, so each is fewer positions at first."""
    trainer = train_from_yaml(write_config(corpus, tmp_path, rows=32), SMALLER)
    assert metrics(trainer, "patch_level/stage") == [0, 0, 0, 1]
    assert metrics(trainer, "patch_level/positions_per_row") == [32, 32, 32, 128]
    said = capfd.readouterr().err
    assert "patch stage, until 3ba: a row of 128 raw tokens is 32 positions" in said
    assert "token stage, from 3ba: a row of 128 raw tokens is 128 positions" in said
    assert "at the switch, positions per row grow from 32 to 128" in said


def test_registered_in_code(corpus: Path, tmp_path: Path) -> None:
    code = tmp_path / "my_code.py"
    code.write_text(
        "from llmfoundry.registry import algorithms\n"
        "from patch_algorithm import PatchLevel\n"
        "algorithms.register('in_code', func=PatchLevel)\n"
    )
    path = write_config(
        corpus,
        tmp_path,
        rows=32,
        code_paths=[str(code)],
        algorithms={"in_code": {"k": 2, "ratio": 0.5}},
    )
    trainer = train_from_yaml(path, [*SMALLER, "max_duration=2ba"])
    assert metrics(trainer, "patch_level/positions_per_row") == [64, 128]


@pytest.mark.slow
@pytest.mark.launcher
def test_unchanged_through_the_command_line(corpus: Path, tmp_path: Path) -> None:
    """All of it: batches of 256 rows, workers, evaluation, the stock vocabulary."""
    path = write_config(corpus, tmp_path, rows=2560)
    command = [str(Path(sys.executable).with_name("llmfoundry")), "train", path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "patch stage, until 7ba" in said
    assert "at the switch, positions per row grow from 32 to 128" in said
    assert "the patch stage ended at batch 7" in said
    assert "[batch=10/10]" in said
