"""A converted dataset: what it says of itself, whether it is whole, and what it holds."""

from __future__ import annotations

from patch_algorithm.data.dataset.description import (
    DATASET_JSON,
    ComponentCounts,
    DatasetInfo,
    StreamInfo,
    TokenizerInfo,
)
from patch_algorithm.data.dataset.inspection import Inspection, inspect_dataset, read_row, row_text
from patch_algorithm.data.dataset.integrity import ShardFault, check_shards

__all__ = [
    "DATASET_JSON",
    "ComponentCounts",
    "DatasetInfo",
    "Inspection",
    "ShardFault",
    "StreamInfo",
    "TokenizerInfo",
    "check_shards",
    "inspect_dataset",
    "read_row",
    "row_text",
]
