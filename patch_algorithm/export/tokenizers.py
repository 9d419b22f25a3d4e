"""Whether the tokenizer of an export is that of its model, its checkpoint and its data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER, PreTrainedTokenizerBase
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from patch_algorithm.checkpoints.export_folder import TOKENIZER_CONFIG, ExportFolder, read_json
from patch_algorithm.checks.finding import Finding, finding
from patch_algorithm.common.files import write_atomically
from patch_algorithm.data.dataset.description import DatasetInfo
from patch_algorithm.data.loader.tokenizers import tokenizer_differences
from patch_algorithm.data.tokens.identity import fingerprint

__all__ = [
    "check_tokenizer",
    "require_checkpoints_tokenizer",
    "require_datas_tokenizer",
    "write_context",
    "write_end_of_text",
]

_GENERATION_CONFIG = "generation_config.json"


def require_checkpoints_tokenizer(
    tokenizer: PreTrainedTokenizerBase, trained_with: PreTrainedTokenizerBase
) -> None:
    """Refuses a tokenizer that gives other ids than the one in the checkpoint.

    Raises:
        ValueError: If it does.
    """
    fast = [one for one in (tokenizer, trained_with) if isinstance(one, PreTrainedTokenizerFast)]
    same = tokenizer.get_vocab() == trained_with.get_vocab()
    if same and len(fast) == 2:
        same = fingerprint(fast[0]) == fingerprint(fast[1])
    if not same:
        raise ValueError(
            "The export's tokenizer is not the one in the checkpoint, so texts would get other ids. Put "
            "the files of the run's tokenizer into the export."
        )


def require_datas_tokenizer(
    tokenizer: PreTrainedTokenizerBase, info: DatasetInfo, folder: str | Path
) -> None:
    """Refuses a tokenizer that gives other ids than the data has.

    Raises:
        ValueError: If it does.
    """
    if differing := tokenizer_differences(info, folder, tokenizer):
        raise ValueError(
            f"The export's tokenizer is not the one that the data in {folder} was written with "
            f"({info.tokenizer.name}): {'; '.join(differing)}."
        )


def check_tokenizer(
    export: ExportFolder, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Iterator[Finding]:
    """What in the tokenizer misleads evaluation or generation."""
    context, stated = export.context, tokenizer.model_max_length
    if context is not None and stated != context:
        said = "no length" if stated >= VERY_LARGE_INTEGER else f"{stated:,} tokens"
        yield finding(
            "export-context",
            f"{TOKENIZER_CONFIG} states {said} (model_max_length), but the model's context is {context:,}.",
            "Evaluation harnesses and pipelines cut texts to that length; beyond its context the model was "
            "never trained.",
            "--fix writes the model's context. In the run, set tokenizer.kwargs.model_max_length to L, "
            "not to the length of a row.",
        )
    settings = model.generation_config
    ends = None if settings is None else settings.eos_token_id
    known = ends if isinstance(ends, list) else [ends]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in known:
        yield finding(
            "export-end-of-text",
            f"generate() stops at the id {ends}, but the tokenizer ends a text with "
            f"{tokenizer.eos_token_id}.",
            "Generation continues after the end of the text.",
            f"--fix writes it to {_GENERATION_CONFIG}.",
        )


def write_context(export: ExportFolder) -> str:
    """Gives the tokenizer the model's context, and says what was changed."""
    return _change(export.path / TOKENIZER_CONFIG, "model_max_length", export.context)


def write_end_of_text(export: ExportFolder, tokenizer: PreTrainedTokenizerBase) -> str:
    """Lets generation stop at the tokenizer's end of text, and says what was changed."""
    return _change(export.path / _GENERATION_CONFIG, "eos_token_id", tokenizer.eos_token_id)


def _change(path: Path, key: str, value: object) -> str:
    content = read_json(path) if path.is_file() else {}
    before = content.get(key)
    write_atomically(path, json.dumps({**content, key: value}, indent=2, ensure_ascii=False) + "\n")
    return f"{path.name}: {key} {before!r} is now {value!r}"
