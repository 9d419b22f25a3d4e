"""Text to token ids, exactly as the tokenizer has them. Knows no files."""

from __future__ import annotations

from patch_algorithm.data.tokens.encoding import (
    Encoder,
    EncodingSpec,
    TokenizerSpec,
    UncuttableText,
    load_tokenizer,
)
from patch_algorithm.data.tokens.identity import fingerprint

__all__ = ["Encoder", "EncodingSpec", "TokenizerSpec", "UncuttableText", "fingerprint", "load_tokenizer"]
