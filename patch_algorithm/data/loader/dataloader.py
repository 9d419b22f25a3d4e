"""The data loader ``pile``: llm-foundry's text loader plus what patch-level training needs."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

from composer.core import DataSpec
from composer.utils import dist
from llmfoundry import registry
from llmfoundry.data.text_data import StreamingTextDataset
from llmfoundry.utils.registry_utils import construct_from_registry
from streaming import StreamingDataset
from torch.utils.data import DataLoader
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from patch_algorithm.data.dataset.row_lengths import cuts_long_rows, is_train
from patch_algorithm.data.loader.pile_dataset import PileDataset
from patch_algorithm.data.loader.places import PLACE_KEYS, find_streams

__all__ = ["FOUNDRY_KEYS", "KNOWN_KEYS", "build_pile_dataloader"]

log = logging.getLogger(__name__)

# Keys of the dataset class, which go to it as they are.
_DATASET_KEYS = {
    name
    for kind in (StreamingTextDataset, StreamingDataset)
    for name in inspect.signature(kind).parameters
    # The streams are made here, of a class of ours.
    if name
    not in {"tokenizer", "batch_size", "streams", "stream_name", "stream_config", "kwargs", *PLACE_KEYS}
}
FOUNDRY_KEYS = {
    "bos_token_id",
    "eos_token_id",
    "mlm_probability",
    "override_bos_token_id_mismatch_error",
    "override_eos_token_id_mismatch_error",
    "seq_parallel_replication",
}
"""What llm-foundry's validator and collator take from the mapping ``dataset``, whatever class reads it."""

KNOWN_KEYS = {*_DATASET_KEYS, *FOUNDRY_KEYS, *PLACE_KEYS, "components", "long_rows", "streams", "verify"}
"""Keys of the mapping ``dataset`` of the loader ``pile``."""


def build_pile_dataloader(
    tokenizer: PreTrainedTokenizerBase | None,
    device_batch_size: int,
    dataset: Mapping[str, Any],
    drop_last: bool,
    num_workers: int,
    pin_memory: bool = True,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = True,
    timeout: int = 0,
) -> DataSpec:
    """Builds the loader of ``train_loader: {name: pile, ...}``.

    Args:
        tokenizer: The run's tokenizer, which has to be the one that the data was written with.
        device_batch_size: Rows in a batch of one device.
        dataset: The keys of llm-foundry's text loader (``local``, ``remote``, ``split``, ``streams``,
            ``max_seq_len``, ``shuffle``, ...), and

            * ``components``: ``pile`` or a mapping of components to weights, for data that was written
              with ``--split-by-component``. Default: all rows are used, each once per epoch.
            * ``long_rows``: what happens to rows longer than ``max_seq_len``, ``refuse`` or ``cut``.
              Default: ``refuse`` if the split's name begins with ``train`` or no split is given, else
              ``cut``. Rows are always counted after cutting, for example in ``epoch_size``.
            * ``verify``: whether shards that exist at start are also compared by checksum, which reads each
              of them once. Default: only their sizes are compared.
        drop_last: Whether to drop a last batch that is not full.
        num_workers: Processes that read ahead. With 0, the last three keys have no effect.
        pin_memory: As for :class:`torch.utils.data.DataLoader`.
        prefetch_factor: Likewise.
        persistent_workers: Likewise.
        timeout: Likewise.

    Returns:
        The loader. Its batches are those of llm-foundry's text loader.

    Raises:
        ValueError: If a key is unknown or its value invalid, there is no data, its rows have another
            length, or it was written with another tokenizer.
    """
    if tokenizer is None:
        raise ValueError("The pile loader needs a tokenizer: set tokenizer.name.")
    asked = dict(dataset)
    key = _key(asked, drop_last)
    cut = _check_keys(asked, key)
    asked["replication"], rows = construct_from_registry(
        name="dataset_replication_validator",
        registry=registry.dataset_replication_validators,
        partial_function=False,
        kwargs={"dataset_cfg": asked, "tokenizer": tokenizer, "device_batch_size": device_batch_size},
    )
    streams = find_streams(asked, tokenizer, key)
    given = {name: value for name, value in asked.items() if name in _DATASET_KEYS}
    data = PileDataset(tokenizer=tokenizer, streams=streams, cut=cut, batch_size=rows, key=key, **given)
    _say_what_is_read(data, asked.get("components") is not None)
    collate, batch_rows = construct_from_registry(
        name="text_collator",
        registry=registry.collators,
        partial_function=False,
        kwargs={"dataloader_cfg": {"dataset": asked}, "tokenizer": tokenizer, "dataset_batch_size": rows},
    )
    loader = DataLoader(
        data,
        collate_fn=collate,
        batch_size=batch_rows,
        drop_last=drop_last,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=persistent_workers and num_workers > 0,
        timeout=timeout if num_workers else 0,
    )
    return construct_from_registry(
        name="data_spec",
        registry=registry.data_specs,
        partial_function=False,
        kwargs={"dl": loader, "dataset_cfg": asked},
    )


def _key(asked: Mapping[str, Any], drop_last: bool) -> str:
    # The builder is not told whose loader it builds.
    if not is_train(asked.get("split")):
        return "eval_loader.dataset"
    if drop_last or asked.get("shuffle"):
        return "train_loader.dataset"
    return "eval_loader or train_loader.dataset"


def _check_keys(asked: Mapping[str, Any], key: str) -> bool:
    """Checks the keys and the values that are ours; returns whether longer rows are cut."""
    if unknown := sorted(str(name) for name in set(asked) - KNOWN_KEYS):
        raise ValueError(
            f"{key} has the unknown keys {', '.join(unknown)}; known are {', '.join(sorted(KNOWN_KEYS))}."
        )
    length = asked.get("max_seq_len")
    # A mapping read from YAML may have 8e3.
    if (
        isinstance(length, bool)
        or not isinstance(length, int | float)
        or not 2 <= length < math.inf
        or length != int(length)
    ):
        raise ValueError(
            f"{key}.max_seq_len is {length!r}; expected the length of a row in tokens, at least 2."
        )
    return cuts_long_rows(asked.get("long_rows"), asked.get("split"), key)


def _say_what_is_read(data: PileDataset, mixed: bool) -> None:
    if dist.get_global_rank():
        return
    if data.pieces > 1:
        log.info("%s: rows of %d tokens are cut into %d.", data.key, data.row_tokens, data.pieces)
    if mixed:
        for stream in data.streams:
            log.info(
                "%s: %.2f %% of the rows, %.2f passes an epoch",
                stream.key,
                100 * stream.proportion,
                stream.repeat,
            )
