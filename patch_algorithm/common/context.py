"""The context that a model's config states, whatever it calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patch_algorithm.common.arguments import is_whole

__all__ = ["CONTEXT_NAMES", "stated_context"]

CONTEXT_NAMES = (
    "max_seq_len",
    "max_position_embeddings",
    "n_positions",
    "block_size",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "seq_len",
    "context_length",
    "n_ctx",
)
"""The names that configs use for the longest sequence a model takes; the first one present counts."""


def stated_context(config: Any) -> int | None:
    """The longest sequence by a config or its text part, in positions; ``None`` if they name no limit.

    Args:
        config: The config, or what its file holds.
    """
    for part in (config, _value(config, "text_config")):
        for name in CONTEXT_NAMES:
            length = _value(part, name)
            if is_whole(length) and length > 0:
                return length
    return None


def _value(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
