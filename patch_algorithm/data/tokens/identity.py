"""Whether two tokenizers are one: by what decides the ids of a text, and by what ids mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

__all__ = ["PROBE", "differences", "fingerprint", "largest_id"]

PROBE = "Hello world, it's  naïve\n\tcafé 1234 😀 x"
"""Spaces, case, accents, signs and a line's end: what tokenizers with code of their own treat apart."""

_FURTHER_PROBES = (
    "def f(x):\n    return x[1:] + 'y'\n",
    "  two  spaces ",
    "1,234.5 €",
    "日本語 and π",
    "A\n\n\nB",
)


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A SHA-256 of what decides the ids of a text.

    That is the model, the normalizer, the pre-tokenizer and the added tokens. Truncation, padding, the
    post-processor, the decoder and the chat template do not count: the same tokenizer loaded with another
    ``model_max_length`` has the same fingerprint.
    """
    deciding = _deciding(tokenizer.backend_tokenizer.to_str())
    return hashlib.sha256(json.dumps(deciding, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id; where ids have holes it is more than the number of entries says."""
    return max(tokenizer.get_vocab().values(), default=len(tokenizer) - 1)


def differences(
    written: str, tokenizer: PreTrainedTokenizerBase, *, allowed: bool, added: Collection[int]
) -> list[str]:
    """What gives the ids of a dataset another meaning in a run.

    A token that only one of both has changes nothing where the dataset cannot hold it, such as a padding
    token that was added for the run.

    Args:
        written: The dataset's ``tokenizer.json``.
        tokenizer: The run's tokenizer.
        allowed: Whether special tokens in a text were read as such.
        added: The ids of BOS and EOS, where the dataset has them.

    Returns:
        What differs, in words; empty where every id of the dataset means the same.
    """
    there = _deciding(written)
    special = {token["id"] for token in there["added_tokens"] if token.get("special")} - set(added)
    unused = frozenset() if allowed else special - set(_model_vocabulary(there["model"]).values())
    vocabulary = Tokenizer.from_str(written).get_vocab(with_added_tokens=True)
    used = {token: token_id for token, token_id in vocabulary.items() if token_id not in unused}
    found = list(_vocabulary_differences(used, tokenizer.get_vocab()))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return found + list(_probe_differences(written, tokenizer))
    return found + list(_part_differences(there, _deciding(backend.to_str())))


def _vocabulary_differences(there: Mapping[str, int], here: Mapping[str, int]) -> Iterator[str]:
    other = {token: token_id for token, token_id in there.items() if here.get(token) != token_id}
    if other:
        token, token_id = min(other.items(), key=lambda item: item[1])
        yield (
            f"{len(other):,} of its {len(there):,} tokens have another id or none, such as {token!r}, "
            f"{token_id} there and {here.get(token)} here"
        )


def _part_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for part in ("normalizer", "pre_tokenizer"):
        if there.get(part) != here.get(part):
            yield f"its {part.replace('_', '-')} differs"
    for name in sorted({*there["model"], *here["model"]} - {"vocab"}):
        if there["model"].get(name) != here["model"].get(name):
            yield f"the {name} of its model differ" if name == "merges" else f"its model has another {name}"
    if there["model"].get("type") == "Unigram" and there["model"]["vocab"] != here["model"].get("vocab"):
        yield "the scores of its tokens differ"
    known = {token["content"]: token for token in there["added_tokens"]}
    for token in here["added_tokens"]:
        own = known.get(token["content"], token)
        if own != token and own["id"] == token["id"]:
            yield f"the added token {token['content']!r} is matched differently"


def _probe_differences(written: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    # A tokenizer in Python cannot be compared by its parts.
    expected = Tokenizer.from_str(written)
    expected.no_truncation()
    expected.no_padding()
    for text in (PROBE, *_FURTHER_PROBES):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids != expected.encode(text, add_special_tokens=False).ids:
            yield f"it gives other ids for {text!r}"
            return


def _deciding(tokenizer_json: str) -> dict[str, Any]:
    """The parts of a ``tokenizer.json`` that decide ids, as every version of the library would write them."""
    parts = json.loads(tokenizer_json)
    model = parts["model"]
    if merges := model.get("merges"):
        model["merges"] = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in merges]
    deciding = {name: parts.get(name) for name in ("model", "normalizer", "pre_tokenizer")}
    deciding["added_tokens"] = sorted(parts.get("added_tokens") or [], key=lambda token: token["id"])
    return _without_unset(deciding)


def _model_vocabulary(model: Mapping[str, Any]) -> Mapping[str, int]:
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, Mapping):
        return vocabulary
    return {token: token_id for token_id, (token, _) in enumerate(vocabulary)}


def _without_unset(value: Any) -> Any:
    # Versions of the library differ in the options they write out unset.
    if isinstance(value, dict):
        kept = {key: _without_unset(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None and item is not False}
    if isinstance(value, list):
        return [_without_unset(item) for item in value]
    return value
