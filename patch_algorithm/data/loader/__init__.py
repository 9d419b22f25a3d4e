"""The data loader ``pile``: rows of a dataset, checked, for llm-foundry.

Its parts are loaded on first use, so that the names of its keys (:mod:`.keys`) need no llm-foundry.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patch_algorithm.data.loader.dataloader import build_pile_dataloader
    from patch_algorithm.data.loader.mixtures import PILE, mixture_shares
    from patch_algorithm.data.loader.streams import ShardError

__all__ = ["PILE", "ShardError", "build_pile_dataloader", "mixture_shares"]

_HOMES = {
    "PILE": "mixtures",
    "ShardError": "streams",
    "build_pile_dataloader": "dataloader",
    "mixture_shares": "mixtures",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
