"""How many parameters a model has, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patch_algorithm.common.arguments import is_number, is_whole
from patch_algorithm.planning.model_section import ModelSection

__all__ = ["parameter_count"]


def parameter_count(model: ModelSection) -> int | None:
    """Parameters of a model.

    Args:
        model: The section ``model`` of a run.

    Returns:
        Of MPT by arithmetic, within one per cent; of a Hugging Face model whose config is on this machine by
        building it without weights. ``None`` for others, and for mixtures of experts of MPT.
    """
    if model.name == "mpt_causal_lm":
        return _of_mpt(model.arguments)
    return None if model.hf_config is None else _of_hugging_face(model.hf_config)


def _of_mpt(arguments: Mapping[str, Any]) -> int | None:
    d, layers = arguments.get("d_model", 2048), arguments.get("n_layers", 24)
    heads, ratio = arguments.get("n_heads", 16), arguments.get("expansion_ratio", 4)
    vocabulary, context = arguments.get("vocab_size", 50368), arguments.get("max_seq_len", 2048)
    attention, ffn = arguments.get("attn_config") or {}, arguments.get("ffn_config") or {}
    optional = arguments.get("head_dim"), attention.get("kv_n_heads"), ffn.get("ffn_hidden_size")
    matrices = {"mptmlp": 2, "mptglu": 3}.get(str(ffn.get("ffn_type", "mptmlp")))
    if (
        not all(map(is_whole, (d, layers, heads, vocabulary, context)))
        or not all(number is None or is_whole(number) for number in optional)
        or not is_number(ratio)
        or not matrices
    ):
        return None
    head = arguments.get("head_dim") or d // heads
    groups = {"multiquery_attention": 1, "grouped_query_attention": attention.get("kv_n_heads")}
    kv = groups.get(str(attention.get("attn_type", "multihead_attention")), heads) or heads
    hidden = ffn.get("ffn_hidden_size") or int(d * ratio)
    per_layer = d * head * (2 * heads + 2 * kv) + matrices * d * hidden + 2 * d
    if not arguments.get("no_bias", False):
        per_layer += head * (heads + 2 * kv) + d + (matrices - 1) * hidden + d + 2 * d
    learned = (
        arguments.get("learned_pos_emb", True) and not attention.get("alibi") and not attention.get("rope")
    )
    tables = 1 if arguments.get("tie_word_embeddings", True) else 2
    return int(layers * per_layer + d * (tables * vocabulary + (context if learned else 0)))


def _of_hugging_face(config: Mapping[str, Any]) -> int | None:
    import torch
    from transformers.models.auto.configuration_auto import AutoConfig
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    arguments = {key: value for key, value in config.items() if key != "model_type"}
    try:
        built = AutoConfig.for_model(config["model_type"], **arguments)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(built)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, ImportError):
        return None
    return sum(parameter.numel() for parameter in model.parameters())
