"""What the loss holds in memory, in units of the logits.

Shapes: N positions, K targets per position, V vocabulary.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patch_algorithm.loss import chunked, patch_cross_entropy
from tests.oracle import random_labels, random_logits

N, V, K = 256, 1024, 4


class LiveBytes(TorchDispatchMode):
    """Follows the storages made while it is active; ``peak`` is the most that lived at once."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = weakref.WeakSet(t.untyped_storage() for t in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.live -= size


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def test_the_measure_sees_what_torch_holds() -> None:
    values = torch.zeros(1000)
    with LiveBytes(values) as memory:
        first = values + 1
        del first
        second = values.double()
        view = second[5:]
        _ = view.add_(1)
    assert memory.peak == 8000
    assert memory.live == 8000


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_one_extra_buffer_of_the_size_of_the_logits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = 8 * V
    monkeypatch.setattr(chunked, "_CHUNK_ELEMENTS_CPU", chunk)
    logits_NV = random_logits(1, N, V, dtype=dtype)
    targets_NK = random_labels(2, (N, K), V, 0.2)
    # Chunks, and a few values per position: the targets alone are K * 8 bytes of V * 2.
    small = 3 * chunk * 8 + N * (6 * K * 8 + 64)
    assert small < 0.9 * size(logits_NV), "else a second buffer would pass"

    with LiveBytes(logits_NV, targets_NK) as forward:
        loss = patch_cross_entropy(logits_NV, targets_NK)
    assert forward.peak < small
    with LiveBytes(logits_NV, targets_NK) as backward:
        (grad_NV,) = torch.autograd.grad(loss.sum, logits_NV)
    assert size(grad_NV) <= backward.peak < size(logits_NV) + small


def test_forward_keeps_the_logits_and_nothing_else_of_their_size() -> None:
    logits_NV = random_logits(1, N, V, dtype=torch.float32)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        patch_cross_entropy(logits_NV, random_labels(2, (N, K), V, 0.0))
    assert saved
    own = [t for t in saved if t.data_ptr() != logits_NV.data_ptr()]
    assert sum(size(t) for t in own) < N * (2 * K * 8 + 64)
