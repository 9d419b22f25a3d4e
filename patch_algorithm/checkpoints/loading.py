"""An export as transformers loads it: with its own code, or with transformers' own.

Letters: B rows, T tokens in a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from patch_algorithm.checkpoints.export_folder import ExportFolder
from patch_algorithm.data.tokens.identity import largest_id

__all__ = [
    "LOADING_ERRORS",
    "Loaded",
    "StoredTypes",
    "embedding_rows",
    "load_as",
    "load_model",
    "load_tokenizer",
    "logits_of",
    "parameters",
    "probe_ids",
    "require_fitting_vocabulary",
    "require_trust",
]

LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)
"""What transformers raises where a folder cannot be loaded."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PROBE_TOKENS = 2048
_ANY_CONTEXT = 64  # for models that state none, such as Bloom


@dataclass(frozen=True)
class Loaded:
    """A model, and what transformers says of its weights.

    Attributes:
        model: The model in float32, in evaluation mode.
        missing: Weights of the model that the files lack; they are random.
        unused: Weights in the files that the model does not have.
    """

    model: PreTrainedModel
    missing: tuple[str, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True)
class StoredTypes:
    """The types that an export stores its weights in.

    Attributes:
        by_name: Of the weights that the files name; a tied one has another name there.
        usual: Of all others.
    """

    by_name: Mapping[str, torch.dtype]
    usual: torch.dtype

    @classmethod
    def of_export(cls, export: ExportFolder) -> StoredTypes:
        """Reads them from the files, and from the config where those do not say."""
        by_name = {name: _DTYPES[dtype] for name, dtype in export.dtypes.items() if dtype in _DTYPES}
        stated = getattr(torch, str(export.config.get("torch_dtype")), torch.float32)
        return cls(by_name, Counter(by_name.values()).most_common(1)[0][0] if by_name else stated)

    def of(self, name: str) -> torch.dtype:
        """The type of one weight."""
        return self.by_name.get(name, self.usual)

    def __str__(self) -> str:
        kinds = {*self.by_name.values()} or {self.usual}
        return ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))


def load_model(export: ExportFolder) -> Loaded:
    """Loads an export in float32, with the code that it brings.

    Raises:
        ValueError: If transformers cannot load it.
    """
    try:
        return load_as(AutoModelForCausalLM, export, trust_remote_code=bool(export.own_code))
    except LOADING_ERRORS as error:
        raise ValueError(f"transformers cannot load {export.path}: {_first_line(error)}") from error


def load_as(kind: Any, export: ExportFolder, **options: Any) -> Loaded:
    """Loads an export by a class of transformers; errors are that class's."""
    model, info = kind.from_pretrained(
        export.path, torch_dtype=torch.float32, local_files_only=True, output_loading_info=True, **options
    )
    return Loaded(model.eval(), tuple(sorted(info["missing_keys"])), tuple(sorted(info["unexpected_keys"])))


def load_tokenizer(export: ExportFolder) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of an export.

    Raises:
        ValueError: If there is none, or it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(
            export.path, local_files_only=True, trust_remote_code=bool(export.own_code)
        )
    # Unreadable files raise all kinds, down to Exception itself from the Rust side.
    except Exception as error:
        raise ValueError(
            f"{export.path} holds no tokenizer that can be loaded: {_first_line(error)}. Put the files of "
            "the run's tokenizer (tokenizer.json, tokenizer_config.json) into the export."
        ) from error


def parameters(model: PreTrainedModel) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def embedding_rows(model: PreTrainedModel) -> int:
    """Ids that a model can read."""
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.shape[0]


def require_trust(export: ExportFolder, trusted: bool) -> None:
    """Refuses an export that brings Python code, unless the user lets it run.

    Raises:
        ValueError: If it brings some, and may not run it.
    """
    if export.own_code and not trusted:
        raise ValueError(
            f"{export.path} brings its model as Python code ({', '.join(export.own_code)}), which runs when "
            "it is loaded. If you made this export, or have read the code, add --trust-remote-code. "
            "Everybody who loads it has to do the same."
        )


def require_fitting_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Refuses a tokenizer with ids that the model has no embedding for.

    Raises:
        ValueError: If there are such ids.
    """
    rows, largest = embedding_rows(model), largest_id(tokenizer)
    if largest >= rows:
        raise ValueError(
            f"The export's tokenizer is not the model's: its ids go up to {largest:,}, but the model has "
            f"{rows:,} embeddings. Put the files of the run's tokenizer into the export."
        )


def probe_ids(export: ExportFolder, vocabulary: int) -> Tensor:
    """One row of random ids over the whole context, where other positions show; at most 2,048.

    Returns:
        ``[1, T]``, int64.
    """
    T = min(export.context or _ANY_CONTEXT, _PROBE_TOKENS)
    return torch.randint(vocabulary, (1, T), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Logits of every position, float32."""
    return model(input_ids=ids_BT).logits.float()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
