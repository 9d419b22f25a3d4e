"""The YAML of small runs, and of the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers import PretrainedConfig

from patch_algorithm.planning.run_file import RunFile

HEALTHY = {
    "algorithms": {"patch_level": {"k": 4, "ratio": "2/3", "seq_len": 8}},
    "scheduler": {"name": "warmup_stable_decay", "t_warmup": "10ba", "t_decay": "0.2dur"},
    "max_duration": "450ba",
    "global_train_batch_size": 4,
    "eval_interval": "150ba",
}
"""Changes to a tiny MPT's file that leave nothing to find."""

MPT = {
    "name": "mpt_causal_lm",
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "expansion_ratio": 2,
    "max_seq_len": 16,
    "vocab_size": 64,
}
"""A tiny MPT with all of llm-foundry's defaults, flash attention and the fused loss among them."""


def settings(**changes: Any) -> dict[str, Any]:
    """The settings of a run of 12 steps: 8 rows of 64 tokens, k=4, rows of 16 positions."""
    return {
        "algorithms": {"patch_level": {"k": 4, "ratio": "2/3", "seq_len": 16}},
        "model": dict(MPT),
        "train_loader": {"name": "pile", "dataset": {"split": "train", "max_seq_len": 64}, "drop_last": True},
        "scheduler": {"name": "warmup_stable_decay", "t_warmup": "2ba", "t_decay": "0.1dur"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "max_duration": "12ba",
        "global_train_batch_size": 8,
        "device_train_microbatch_size": 4,
        "precision": "fp32",
        **changes,
    }


def run_of(**changes: Any) -> RunFile:
    """A run, read."""
    return RunFile.from_config(OmegaConf.create(settings(**changes)), "run.yaml")


def written(folder: Path, name: str = "run.yaml", **changes: Any) -> str:
    """A run's YAML in a file."""
    path = folder / name
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(settings(**changes))))
    return str(path)


def hugging_face(config: PretrainedConfig, folder: Path) -> dict[str, Any]:
    """The section ``model`` of a Hugging Face model whose config is in a folder."""
    config.save_pretrained(folder)
    return {"name": "hf_causal_lm", "pretrained_model_name_or_path": str(folder), "pretrained": False}


PAPER = """\
# Patch-level training (arXiv 2407.12665), 370M parameters: 2,097,152 raw tokens a step.
max_seq_len: 2048
algorithms:
  patch_level: {{k: 4, ratio: "2/3", seq_len: 2048, on_switch: reset}}
model:
  name: hf_causal_lm
  pretrained_model_name_or_path: {folder}
  pretrained: false
train_loader:
  name: text
  dataset: {{local: ./pile, split: train, max_seq_len: 8192}}
  drop_last: true
scheduler:
  name: per_stage
  scheduler: {{name: cosine_with_warmup, t_warmup: 2000ba, alpha_f: 0.0}}
optimizer: {{name: adamw, lr: 3.0e-4, weight_decay: 0.1}}
max_duration: 180000ba
global_train_batch_size: 256
device_train_microbatch_size: 4
precision: amp_bf16
"""
PAPER_SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2752,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
