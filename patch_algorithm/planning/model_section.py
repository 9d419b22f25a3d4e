"""The section ``model``: context and vocabulary, where the YAML or a local Hugging Face config say them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_algorithm.common.arguments import is_whole
from patch_algorithm.common.context import CONTEXT_NAMES
from patch_algorithm.planning.config import Values

__all__ = ["ModelSection", "read_model"]


@dataclass(frozen=True)
class ModelSection:
    """The model of a run.

    Attributes:
        name: llm-foundry's name of it, such as ``mpt_causal_lm``.
        arguments: The whole section, resolved.
        context: The longest sequence it takes, in positions; ``None`` where that is not known here.
        context_key: What the context was read from: a key of the YAML or a name in the Hugging Face config.
        vocab_size: Entries of its vocabulary; ``None`` where that is not known here.
        hf_config: The Hugging Face config with ``config_overrides``, if the model names one that is in a
            local folder or in the hub's cache.
    """

    name: str | None
    arguments: Mapping[str, Any]
    context: int | None
    context_key: str
    vocab_size: int | None
    hf_config: Mapping[str, Any] | None = None


def read_model(values: Values) -> ModelSection:
    """Reads the section ``model``. Nothing is downloaded.

    Raises:
        ValueError: If a value is not of its type; it names the full key.
    """
    name = values.text("name")
    for section in ("attn_config", "ffn_config"):
        values.section(section)  # refused here where it is no mapping
    if name == "mpt_causal_lm":
        for number in ("d_model", "n_heads", "n_layers"):
            values.whole(number)
    pretrained = values.text("pretrained_model_name_or_path")
    if pretrained is None:
        context = values.whole("max_seq_len")
        return ModelSection(
            name, values.mapping, context, values.key("max_seq_len"), values.whole("vocab_size")
        )
    overrides = values.section("config_overrides").mapping
    config = _local_config(pretrained)
    config = None if config is None else {**config, **overrides}
    known = dict(overrides) if config is None else config
    context_name = next((key for key in CONTEXT_NAMES if is_whole(known.get(key))), None)
    vocabulary = known.get("vocab_size")
    return ModelSection(
        name=name,
        arguments=values.mapping,
        context=None if context_name is None else known[context_name],
        context_key=values.key(
            f"config_overrides.{context_name}"
            if context_name in overrides
            else "pretrained_model_name_or_path"
        ),
        vocab_size=vocabulary if is_whole(vocabulary) else None,
        hf_config=config,
    )


def _local_config(name: str) -> dict[str, Any] | None:
    path: Path | None = Path(name) / "config.json"
    if not os.path.isdir(name):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(name, "config.json")
        except HFValidationError:  # neither a folder nor the name of a repository
            return None
        path = Path(cached) if isinstance(cached, str) else None
    try:
        content = json.loads(path.read_text("utf-8")) if path is not None else None
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
