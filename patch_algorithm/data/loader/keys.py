"""The keys of the mapping ``dataset`` of the loader ``pile``, for readers that do not load it."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["FOUNDRY_KEYS", "PLACE_KEYS", "dataset_keys", "known_keys"]

PLACE_KEYS = ("remote", "local", "split")
"""Where the rows are."""

FOUNDRY_KEYS = {
    "bos_token_id",
    "eos_token_id",
    "mlm_probability",
    "override_bos_token_id_mismatch_error",
    "override_eos_token_id_mismatch_error",
    "seq_parallel_replication",
}
"""What llm-foundry's validator and collator take from the mapping ``dataset``, whatever class reads it."""

# The streams are made by the loader, of a class of its own.
_MADE_HERE = {"tokenizer", "batch_size", "streams", "stream_name", "stream_config", "kwargs", *PLACE_KEYS}
_OWN_KEYS = {"components", "long_rows", "streams", "verify"}


def dataset_keys(arguments: Iterable[str]) -> set[str]:
    """Keys that go to the data set class as they are.

    Args:
        arguments: Those of llm-foundry's and of streaming's data set.
    """
    return set(arguments) - _MADE_HERE


def known_keys(arguments: Iterable[str]) -> set[str]:
    """All keys.

    Args:
        arguments: As for :func:`dataset_keys`.
    """
    return {*dataset_keys(arguments), *FOUNDRY_KEYS, *PLACE_KEYS, *_OWN_KEYS}
