"""A small model with a tokenizer, as an export, and text for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.export.conftest import registries_put_back

__all__ = ["registries_put_back"]

CONTEXT = 8
TEXTS = [
    " ".join(f"w{(7 * i * i + 3 * seed) % 90}" for i in range(length))
    for seed, length in enumerate((5, 21, 1, 16, 30))
]


@pytest.fixture(scope="session")
def export(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Llama; nobody may change it."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(corpus / "tokenizer").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(run_of: Callable[..., Path]) -> Path:
    """The folder of a run with checkpoints and exports of a Llama; nobody may change it."""
    return run_of("llama")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path
