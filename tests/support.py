"""Tiny corpora, models and runs for tests that go through the real trainer."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from omegaconf import OmegaConf
from streaming import MDSWriter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from patch_algorithm.data.dataset.description import DatasetInfo, StreamInfo, TokenizerInfo
from patch_algorithm.data.tokens.identity import fingerprint

VOCABULARY = 96
"""Size of the tiny tokenizer's vocabulary; the last two ids are end-of-text and padding."""
ROW = 32
"""Tokens per row of the tiny training split, the longest a tiny run uses: k * seq_len of 4 * 8."""


def write_corpus(folder: Path, row: int = ROW, rows: int = 256, seed: int = 0, val_row: int = 8) -> Path:
    """Writes ``tokenizer/``, ``mds/{train,val}`` and ``mds/dataset.json`` and returns ``folder``.

    The rows are random walks over the vocabulary, so that there is something to learn, with an
    end-of-text token now and then. Validation rows have ``val_row`` tokens.
    """
    words = {f"w{i}": i for i in range(VOCABULARY - 2)} | {"<eos>": 94, "<pad>": 95}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", model_max_length=row
    )
    fast.save_pretrained(folder / "tokenizer")
    rng = np.random.default_rng(seed)
    for split, length, number in (("train", row, rows), ("val", val_row, 32)):
        columns = {"tokens": f"ndarray:uint16:{length}"}
        with MDSWriter(out=str(folder / "mds" / split), columns=columns) as out:
            for _ in range(number):
                steps = rng.integers(1, 4, size=length)
                tokens = (rng.integers(0, 94) + np.cumsum(steps)) % 94
                tokens[rng.random(length) < 0.05] = 94
                out.write({"tokens": tokens.astype(np.uint16)})
    written = TokenizerInfo(fingerprint(fast), "tiny", VOCABULARY, 94, None, "text", True, False)
    streams = tuple(
        StreamInfo(split, None, split, length, number, 1, length * number, 0)
        for split, length, number in (("train", row, rows), ("val", val_row, 32))
    )
    DatasetInfo(written, "uint16", {"train": row, "val": val_row}, False, None, streams, {}).write(
        folder / "mds"
    )
    return folder


def mpt(**changes: Any) -> dict[str, Any]:
    """A tiny MPT model config; ``attn_config`` entries may be given by their own names."""
    attention = {"attn_impl": "torch", "rope": True, "rope_impl": "hf", "rope_theta": 10000}
    attention["rope_hf_config"] = {"type": "no_scaling", "factor": 1.0}
    attention |= changes.pop("attn_config", {})
    return {
        "name": "mpt_causal_lm",
        "init_device": "cpu",
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 2,
        "expansion_ratio": 2,
        "max_seq_len": 8,
        "vocab_size": VOCABULARY,
        "learned_pos_emb": False,
        "loss_fn": "torch_crossentropy",
        "attn_config": attention,
    } | changes


def config(corpus: Path, model: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An llm-foundry training config of 6 batches of 4 rows; ``changes`` replace top-level keys."""
    loader = {
        "name": "text",
        "drop_last": True,
        "num_workers": 0,
        "prefetch_factor": None,
        "persistent_workers": False,
        "pin_memory": False,
    }
    data = {"local": str(corpus / "mds"), "shuffle_seed": 17}
    return {
        "seed": 17,
        "model": copy.deepcopy(model),
        "tokenizer": {
            "name": str(corpus / "tokenizer"),
            "kwargs": {"model_max_length": ROW},
        },
        "max_seq_len": ROW,
        "train_loader": loader | {"dataset": data | {"split": "train", "shuffle": True, "max_seq_len": ROW}},
        "eval_loader": loader | {"dataset": data | {"split": "val", "shuffle": False, "max_seq_len": 8}},
        "eval_interval": 0,
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "0ba"},
        "optimizer": {
            "name": "decoupled_adamw",
            "lr": 1.0e-3,
            "betas": [0.9, 0.95],
            "eps": 1.0e-8,
            "weight_decay": 0.0,
        },
        "max_duration": "6ba",
        "global_train_batch_size": 4,
        "device_train_microbatch_size": 4,
        "device_eval_batch_size": 4,
        "precision": "fp32",
        "python_log_level": None,
        "log_config": False,
        "loggers": {"inmemory": {}},
    } | changes


def train(cfg: dict[str, Any]) -> Trainer:
    """Runs llm-foundry's own training function on a config and returns the finished trainer."""
    from llmfoundry.command_utils.train import train as foundry_train

    gc.collect()
    return foundry_train(OmegaConf.create(copy.deepcopy(cfg)))


def metrics(trainer: Trainer, name: str) -> list[float]:
    """What a run logged under ``name``, in order."""
    memory = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    return [float(value) for _, value in memory.data.get(name, [])]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of the model's state dict."""
    return {name: t.detach().clone() for name, t in trainer.state.model.state_dict().items()}
