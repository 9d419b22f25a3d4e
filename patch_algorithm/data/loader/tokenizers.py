"""Whether a run's tokenizer is that of the data: asked by the loader, and by checks before a run."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from patch_algorithm.data.dataset.description import TOKENIZER_JSON, DatasetInfo, read_text
from patch_algorithm.data.tokens.identity import differences, fingerprint

__all__ = ["tokenizer_differences"]


def tokenizer_differences(
    info: DatasetInfo, folder: str | Path, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """What gives the ids of a dataset another meaning in a run.

    Args:
        info: The dataset's description.
        folder: The folder, or URL, that the description lies in.
        tokenizer: The run's tokenizer.

    Returns:
        What differs, in words; empty where every id means the same. A tokenizer with an added token that the
        data cannot hold, such as one for padding, is the same.
    """
    written = info.tokenizer
    if isinstance(tokenizer, PreTrainedTokenizerFast) and fingerprint(tokenizer) == written.fingerprint:
        return []
    try:
        text = read_text(folder, TOKENIZER_JSON)
        Tokenizer.from_str(text)
    # A bare Exception is what the library raises for a file that it cannot read.
    except Exception as error:
        return [f"what differs is not known, because its {TOKENIZER_JSON} cannot be read ({error})"]
    added = {written.eos_id if written.adds_eos else None, written.bos_id if written.adds_bos else None}
    return differences(
        text, tokenizer, allowed=written.special_tokens == "allow", added={i for i in added if i is not None}
    )
