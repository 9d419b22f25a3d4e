"""The model families that must train in patches, as tiny configs, and what watches them do it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import transformers
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.models import ComposerModel
from llmfoundry.registry import algorithms
from llmfoundry.utils.builders import build_composer_model
from torch import Tensor, nn

from tests.support import VOCABULARY, mpt

CONTEXT = 8
"""Positions the tiny models take."""

_NO_ROPE = {"rope": False}
MPT: dict[str, dict[str, Any]] = {
    "mpt-tied-rope": {},
    "mpt-untied": {"tie_word_embeddings": False},
    "mpt-alibi": {"attn_config": _NO_ROPE | {"alibi": True}},
    "mpt-learned-positions": {"attn_config": _NO_ROPE, "learned_pos_emb": True},
    "mpt-gqa": {
        "n_heads": 4,
        "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2},
    },
    "mpt-logit-scale": {"logit_scale": "inv_sqrt_d_model"},
    "mpt-softcap": {"final_logit_softcapping": 3.0, "attn_config": {"attn_logit_softcapping": 5.0}},
}

_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
_NO_DROPOUT = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
_EXPERTS = {"output_router_logits": True, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}
_HEAD_DIM = {"head_dim": 8}

HF: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SIZES),
    "mistral": ("MistralConfig", _SIZES | {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", _SIZES),
    "qwen3": ("Qwen3Config", _SIZES | _HEAD_DIM),
    "gpt2": ("GPT2Config", _GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt-neox": ("GPTNeoXConfig", _SIZES),
    "opt": ("OPTConfig", _SIZES | {"ffn_dim": 32, "word_embed_proj_dim": 8, "dropout": 0.0}),
    "gemma2": ("Gemma2Config", _SIZES | _HEAD_DIM),
    "gemma3": ("Gemma3TextConfig", _SIZES | _HEAD_DIM | {"sliding_window_pattern": 2}),
    "phi3": ("Phi3Config", _SIZES),
    "falcon": ("FalconConfig", _SIZES | _NO_DROPOUT | {"alibi": False}),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2} | _NO_DROPOUT),
    "mixtral": ("MixtralConfig", _SIZES | _EXPERTS | {"num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", _SIZES | _EXPERTS | {"num_experts": 4}),
}
MIXTURES_OF_EXPERTS = ("mixtral", "olmoe")
FAMILIES = (*MPT, *HF)


def family(name: str, folder: Path) -> dict[str, Any]:
    """The llm-foundry model config of a family; writes the Hugging Face ones' ``config.json``."""
    if name in MPT:
        return mpt(**copy.deepcopy(MPT[name]))
    config_class, sizes = HF[name]
    # transformers' defaults for these ids lie beyond a tiny vocabulary.
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 94, "eos_token_id": 94, "pad_token_id": 95}
    config = getattr(transformers, config_class)(**ids, **sizes)
    config.save_pretrained(folder / name)
    return {
        "name": "hf_causal_lm",
        "pretrained_model_name_or_path": str(folder / name),
        "pretrained": False,
    }


def plain_model(model: dict[str, Any], corpus: Path) -> ComposerModel:
    """A model that no trainer has seen."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(corpus / "tokenizer")
    cfg = {key: value for key, value in copy.deepcopy(model).items() if key != "name"}
    return build_composer_model(name=model["name"], cfg=cfg, tokenizer=tokenizer)


def traces(model: nn.Module) -> dict[str, Any]:
    """Everything that someone could have hung on a model: hooks, attributes, classes, keys."""
    return {
        path: (
            type(module),
            sorted(vars(module)),
            {name: list(held.values()) for name, held in vars(module).items() if "_hooks" in name},
        )
        for path, module in model.named_modules()
    } | {"state dict": list(model.state_dict())}


class Witness(Algorithm):
    """Records what goes into each step. Named after patch_level, it meets batches before it does."""

    def __init__(self) -> None:
        self.untouched: dict[str, Any]
        self.traces: list[dict[str, Any]] = []
        self.keys: list[list[str]] = []
        self.raw: list[dict[str, Any]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.logits: list[Tensor] = []

    def match(self, event: Event, state: State) -> bool:
        return event.name in ("INIT", "AFTER_DATALOADER", "BEFORE_FORWARD", "AFTER_FORWARD", "AFTER_BACKWARD")

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.INIT:
            self.untouched = traces(state.model)
        elif event == Event.AFTER_DATALOADER:
            self.raw.append(copy.deepcopy(state.batch))
            self.weights.append({n: t.detach().clone() for n, t in state.model.state_dict().items()})
        elif event == Event.BEFORE_FORWARD:
            self.shapes.append(tuple(state.batch["input_ids"].shape))
            self.traces.append(traces(state.model))
        elif event == Event.AFTER_FORWARD:
            self.keys.append(list(state.model.state_dict()))
            self.logits.append(state.outputs["logits"].detach().clone())
        else:
            self.gradients.append(
                {n: p.grad.clone() for n, p in state.model.named_parameters() if p.grad is not None}
            )


if "witness" not in algorithms:
    algorithms.register("witness", func=Witness)
