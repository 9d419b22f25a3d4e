"""The model in a Composer checkpoint, built without a trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from composer.models import HuggingFaceModel
from llmfoundry.models import mpt
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from patch_algorithm.checkpoints.state import read_state
from patch_algorithm.checkpoints.training import Training

__all__ = ["Trained", "read_checkpoint"]


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds.

    Attributes:
        path: The checkpoint.
        model: Its model, in evaluation mode, on the CPU.
        tokenizer: Its tokenizer; ``None`` where the run had none.
        training: What it says of the run.
    """

    path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    training: Training


def read_checkpoint(path: str) -> Trained:
    """Builds the model of a checkpoint, and loads its weights.

    Args:
        path: A file ``*.pt``, or the folder of a sharded checkpoint.

    Raises:
        ValueError: If it cannot be read, or is not of a Hugging Face model or MPT.
    """
    state = read_state(path)
    saved = (state["integrations"] or {}).get("huggingface")
    if not saved or "config" not in saved.get("model", {}):
        raise ValueError(f"The checkpoint {path} holds a model that Hugging Face's format does not support.")
    model = _model(path, saved["model"]["config"])
    weights = {name.removeprefix("model."): tensor for name, tensor in state["model"].items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"The weights in {path} are not those of its own model: {error}") from error
    algorithms = dict(state["algorithms"])
    return Trained(
        path,
        model.eval(),
        _tokenizer(saved.get("tokenizer")),
        Training.from_state(algorithms.get("PatchLevel"), state["timestamp"]["Timestamp"]),
    )


def _model(path: str, saved: Mapping[str, Any]) -> PreTrainedModel:
    # FSDP2 gives the class of a model another module, and a name with this before it.
    name = saved["class"].rpartition(".")[2].removeprefix("FSDP")
    made: Any = next((getattr(place, name) for place in (transformers, mpt) if hasattr(place, name)), None)
    if not isinstance(made, type) or not issubclass(made, PreTrainedModel):
        raise ValueError(
            f"The checkpoint {path} holds a {saved['class']}, which is neither a model of transformers nor "
            "llm-foundry's MPT. Adapters (PEFT) have to be merged into their model first."
        )
    content = dict(saved["content"])
    if isinstance(content.get("attn_config"), Mapping):
        # As `hf_checkpointer` does, since these say how the run computes and not what.
        content |= {"init_device": "cpu", "attn_config": {**content["attn_config"], "attn_impl": "torch"}}
    config: Any = made.config_class
    return made(config.from_dict(content))


def _tokenizer(saved: Any) -> PreTrainedTokenizerBase | None:
    if not saved:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return HuggingFaceModel.load_huggingface_tokenizer_from_saved_state(
            {"tokenizer": saved}, tokenizer_save_dir=folder
        )
