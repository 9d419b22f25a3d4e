"""What can be evaluated: an exported folder, or a Composer checkpoint, full or sharded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from patch_algorithm.checkpoints.export_folder import CONFIG, read_export
from patch_algorithm.checkpoints.loading import (
    load_model,
    load_tokenizer,
    require_fitting_vocabulary,
    require_trust,
)
from patch_algorithm.checkpoints.trained import read_checkpoint
from patch_algorithm.checkpoints.training import Training
from patch_algorithm.model_access.reading import context_length

__all__ = ["Evaluated", "load"]


@dataclass(frozen=True)
class Evaluated:
    """A model that is evaluated.

    Attributes:
        path: Where it comes from.
        model: The model in float32, in evaluation mode, on the CPU.
        tokenizer: Its tokenizer.
        context: Positions that it takes; ``None`` where its config does not say.
        training: What its checkpoint says of the run; ``None`` for an export, which says nothing.
    """

    path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    training: Training | None

    @property
    def parameters(self) -> int:
        """Parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def in_patch_stage(self) -> bool:
        """Whether the checkpoint says that the model has not learned to read tokens yet."""
        return self.training is not None and self.training.in_patch_stage


def load(path: str, *, trust_remote_code: bool = False) -> Evaluated:
    """Loads a model and its tokenizer.

    Args:
        path: The folder of an export, a file ``*.pt``, or the folder of a sharded checkpoint.
        trust_remote_code: Whether Python code in an export may be run.

    Raises:
        ValueError: If there is none, it is damaged, or model and tokenizer do not belong together.
    """
    place, training = Path(path), None
    if place.is_dir() and ((place / CONFIG).exists() or not (place / ".metadata").exists()):
        export = read_export(place)
        require_trust(export, trust_remote_code)
        tokenizer, loaded = load_tokenizer(export), load_model(export)
        if wrong := (*loaded.missing, *loaded.unused):
            raise ValueError(
                f"The weights in {path} are not those of its model, such as {wrong[0]}. "
                "`patch-level check-export` says more."
            )
        model = loaded.model
    else:
        trained = read_checkpoint(path)
        model, tokenizer, training = trained.model.float(), trained.tokenizer, trained.training
        if tokenizer is None:
            raise ValueError(f"The checkpoint {path} holds no tokenizer. Evaluate its export instead.")
    require_fitting_vocabulary(tokenizer, model)
    return Evaluated(path, model, tokenizer, context_length(cast(Any, model)), training)
