"""Which models cannot be trained in patches, and why."""

from __future__ import annotations

from typing import Any

from composer.models import ComposerModel

from patch_algorithm.common.context import CONTEXT_NAMES
from patch_algorithm.model_access.reading import (
    context_length,
    further_embeddings,
    input_embedding,
)

__all__ = ["refuse_unsupported"]


def refuse_unsupported(model: ComposerModel, seq_len: int | None = None) -> None:
    """Raises a ValueError with the reason if the model cannot be trained in patches.

    Args:
        model: The (unwrapped) Composer model.
        seq_len: Positions that the user says it takes. If its config names no context, tables with at least
            this many rows are taken for position tables. A second token embedding among them is detected
            at the first forward pass, when it is given the token ids.

    Raises:
        ValueError: Encoder-decoders, models without an input embedding or with further
            embeddings of the vocabulary, models whose labels are not aligned with their tokens,
            prompt tuning.
    """
    name = type(getattr(model, "model", model)).__name__
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder: patch-level training is defined for decoder-only models."
        )
    if not getattr(model, "shift_labels", True):
        raise ValueError(
            f"{name} is set to shift_labels=False, while patch targets need labels that are aligned with the "
            "tokens. Set shift_labels=True and give unshifted labels."
        )
    adapter: Any = getattr(getattr(model, "model", None), "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise ValueError(
            f"{name} uses prompt tuning ({adapter.peft_type}), which adds positions that are not patches. "
            "Use adapters inside the model (LoRA), or train at token level."
        )
    if not getattr(config, "use_return_dict", True):
        raise ValueError(f"{name} returns tuples. Set return_dict to true in its config.")
    _refuse_further_embeddings(model, name, seq_len)


def _refuse_further_embeddings(model: ComposerModel, name: str, seq_len: int | None) -> None:
    parts = input_embedding(model).modules()
    sizes = [rows for part in parts if isinstance(rows := getattr(part, "num_embeddings", None), int)]
    if not sizes:
        return
    vocabulary, context = max(sizes), context_length(model)
    for path, module in further_embeddings(model).items():
        rows = int(module.num_embeddings)  # pyright: ignore[reportArgumentType]
        # Tables of positions may be as large as a small vocabulary; OPT's holds two rows more.
        positional = context is not None and context <= rows <= context + 2
        said_positional = context is None and seq_len is not None and seq_len <= rows
        if rows > vocabulary // 2 and not positional and not said_positional:
            raise ValueError(
                f"{name} seems to look token ids up in a second embedding: {path} has {rows} rows, and the "
                f"vocabulary has {vocabulary}. Per-layer and value embeddings cannot be averaged from "
                f"outside the model; train such a model at token level. {_way_past(rows, context)}"
            )


def _way_past(rows: int, context: int | None) -> str:
    guess = "This is a guess from the size of the table. If it holds positions,"
    if context is None:
        names = ", ".join(CONTEXT_NAMES)
        return f"{guess} set seq_len of patch_level (at most {rows}), or its size in the config ({names})."
    return f"{guess} correct the model's config, which gives {context} positions."
