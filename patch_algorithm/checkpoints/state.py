"""The state in a Composer checkpoint, full or sharded, without the optimizer's.

Both kinds hold pickled objects: reading a checkpoint runs what is in it, as resuming from it does.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

__all__ = ["read_state"]

_SHARDED = ".metadata"
_NEEDED = ("model", "algorithms", "timestamp", "integrations")
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError)


def read_state(path: str) -> dict[str, Any]:
    """Reads what a checkpoint says of the model, the algorithms, the clock and the integrations.

    Args:
        path: A file ``*.pt``, or the folder of a sharded checkpoint.

    Raises:
        ValueError: If there is none, or it is damaged, or not one of Composer's.
    """
    if "://" in path:
        raise ValueError(f"{path} is on another machine. Download the checkpoint first, and give its path.")
    place = Path(path)
    if not place.exists():
        raise ValueError(f"There is no checkpoint {path}.{_others(place)}")
    if place.is_dir() and not (place / _SHARDED).is_file():
        raise ValueError(
            f"The folder {path} is not a sharded checkpoint: it holds no {_SHARDED}.{_others(place / 'x')}"
        )
    try:
        state = _sharded(place) if place.is_dir() else _full(place)
    except _DAMAGED as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"The checkpoint {path} cannot be read: it is damaged, cut short or not one of Composer's "
            f"({type(error).__name__}: {first})."
        ) from error
    if not isinstance(state, dict) or not set(_NEEDED) <= state.keys():
        raise ValueError(f"{path} is not a checkpoint of Composer's trainer: it holds no state of a run.")
    return {name: state[name] for name in _NEEDED}


def _others(place: Path) -> str:
    folder = place.parent
    if not folder.is_dir():
        return ""
    found = sorted(
        str(one)
        for one in folder.iterdir()
        if one.suffix == ".pt" or (one.is_dir() and (one / _SHARDED).exists())
    )
    return f" {folder} has {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}." if found else ""


def _full(path: Path) -> Any:
    # Mapped, so that the optimizer's state is not read.
    content = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    return content.get("state") if isinstance(content, dict) else None


def _sharded(path: Path) -> Any:
    metadata = FileSystemReader(path).read_metadata()
    _require_whole_files(path, metadata.storage_data)
    wanted: dict[str, Any] = {}
    for name, stored in metadata.state_dict_metadata.items():
        if name.startswith(tuple(f"state.{part}" for part in _NEEDED)):
            is_tensor = isinstance(stored, TensorStorageMetadata)
            wanted[name] = torch.empty(stored.size, dtype=stored.properties.dtype) if is_tensor else None
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        dcp.load(wanted, checkpoint_id=path, planner=planner, no_dist=True)
    except CheckpointException as error:  # which is no Exception
        raise ValueError("; ".join(str(failure) for failure, _ in error.failures.values())) from error
    paths: Mapping[str, tuple[Any, ...]] = metadata.planner_data or {}
    nested: dict[Any, Any] = {}
    for name, value in wanted.items():
        *parents, last = paths.get(name, tuple(name.split(".")))
        below = nested
        for key in parents:
            below = below.setdefault(key, {})
        below[last] = value
    return _with_lists(nested).get("state")


def _require_whole_files(path: Path, stored: Mapping[Any, Any]) -> None:
    ends: dict[str, int] = {}
    for part in stored.values():
        ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    for name, end in ends.items():
        if (size := (path / name).stat().st_size) < end:
            raise ValueError(f"{name} has {size:,} bytes and should have {end:,}")


def _with_lists(value: Any) -> Any:
    """Turns mappings from 0, 1, ... back into the lists that torch flattened."""
    if not isinstance(value, dict):
        return value
    if value and all(isinstance(key, int) for key in value):
        return [_with_lists(value[key]) for key in sorted(value)]
    return {key: _with_lists(below) for key, below in value.items()}
