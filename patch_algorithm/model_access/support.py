"""Which models cannot be trained in patches, and why."""

from __future__ import annotations

from typing import Any

from composer.models import ComposerModel

from patch_algorithm.model_access.reading import context_length, input_embedding

__all__ = ["refuse_unsupported"]


def refuse_unsupported(model: ComposerModel) -> None:
    """Raises a ValueError with the reason if the model cannot be trained in patches.

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
            f"{name} is tuned by prompts ({adapter.peft_type}), which add positions of their own that are no "
            "patches. Train adapters inside the model (LoRA), or at token level."
        )
    if not getattr(config, "use_return_dict", True):
        raise ValueError(f"{name} returns tuples. Set return_dict to true in its config.")
    _refuse_further_embeddings(model, name)


def _refuse_further_embeddings(model: ComposerModel, name: str) -> None:
    own = set(input_embedding(model).modules())  # FSDP or an adapter may have wrapped it
    sizes = [rows for part in own if isinstance(rows := getattr(part, "num_embeddings", None), int)]
    if not sizes:
        return
    vocabulary = max(sizes)
    context = context_length(model)
    for path, module in model.named_modules():
        rows = getattr(module, "num_embeddings", None)
        if module in own or not isinstance(rows, int):
            continue
        # Tables of positions may be as large as a small vocabulary; OPT's holds two rows more.
        positional = context is not None and context <= rows <= context + 2
        if rows > vocabulary // 2 and not positional:
            raise ValueError(
                f"{name} looks token ids up in a second embedding ({path}, {rows} rows beside a "
                f"vocabulary of {vocabulary}): per-layer and value embeddings cannot be averaged from "
                "outside the model. Train this model at token level."
            )
