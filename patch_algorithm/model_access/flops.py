"""What a training step of a model computes, in floating point operations.

Nothing is estimated from a config. A copy of the model without weights is run forward and backward on
rows of three lengths under torch's own FLOP counter. That works for every architecture that runs: with
experts, heads of any width, and frozen weights whose backward pass is left out.

Shapes: B rows, P positions.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers.modeling_utils import PreTrainedModel

from patch_algorithm.common.announce import announce
from patch_algorithm.model_access.reading import context_length

__all__ = ["FlopCounter", "flop_counter"]

FlopCounter = Callable[[Any], float]
"""FLOPs of the forward and the backward of a batch as the model is given it: of B rows of P positions."""

_LENGTHS = (8, 16, 32)
_TOLERANCE = 0.01


def flop_counter(model: ComposerModel) -> FlopCounter | None:
    """Counts a model's FLOPs by running a copy of it that has no weights.

    A step of B rows of P positions takes ``B (a P + b P^2)``: matrix products with the weights, and
    attention over all P positions, masked ones included. a and b come from rows of two lengths, counted by
    :class:`torch.utils.flop_counter.FlopCounterMode`, and a third length has to agree. A backward that
    frozen weights make needless is not counted, nor are recomputed activations. Looking up a patch's
    embeddings and the loss are left out.

    If the copy cannot be run this way, for example because of custom GPU kernels, the model's
    ``flops_per_batch`` is used, if it has one and all its weights are trained. Otherwise there is no figure,
    and a message says so.

    Call it before the model is wrapped: FSDP leaves each rank a shard of the parameters.

    Args:
        model: The Composer model. It is left as it is, and so is the random state.

    Returns:
        A function of a batch that has token ids (B, P), which is 0 for any other; ``None`` where there is no
        figure.
    """
    try:
        linear, quadratic = _coefficients(model)
    except Exception as error:  # a model's code may raise anything, and a figure must not end a run
        return _own_count(model, f"{type(error).__name__}: {error}".splitlines()[0])

    def count(B: int, P: int, batch: Any) -> float:
        return B * (linear * P + quadratic * P * P)

    return _of_ids(count)


def _own_count(model: ComposerModel, reason: str) -> FlopCounter | None:
    own: Callable[[Any], float] | None = getattr(model, "flops_per_batch", None)
    if callable(own) and all(parameter.requires_grad for parameter in model.parameters()):
        # llm-foundry's models count their parameters at the first call and keep the number.
        getattr(model, "n_active_params", None)
        return _of_ids(lambda B, P, batch: float(own(batch)))
    announce(
        f"FLOPs and MFU are not logged: the FLOPs of {type(model).__name__} cannot be counted ({reason})."
    )
    return None


def _of_ids(count: Callable[[int, int, Any], float]) -> FlopCounter:
    def of_batch(batch: Any) -> float:
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if not isinstance(ids, Tensor) or ids.dim() < 2:
            return 0.0
        return float(count(ids.shape[0], ids.shape[1], batch))

    return of_batch


def _coefficients(model: ComposerModel) -> tuple[float, float]:
    """FLOPs of a row by position and by pair of positions."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
        isinstance(parameter.data, DTensor) for parameter in model.parameters()
    ):
        raise ValueError("its weights are sharded")
    scale = min(1.0, (context_length(model) or _LENGTHS[-1]) / _LENGTHS[-1])
    short, middle, long = (max(int(P * scale), 1 + i) for i, P in enumerate(_LENGTHS))
    hollow = _hollow_copy(model)
    with _gradients_aside(model):
        counted = {P: _counted(hollow, P) for P in (short, middle, long)}
    quadratic = (counted[middle] / middle - counted[short] / short) / (middle - short)
    linear = counted[short] / short - quadratic * short
    predicted = linear * long + quadratic * long * long
    if counted[short] == 0 or abs(predicted / counted[long] - 1) > _TOLERANCE:
        raise ValueError(f"rows of {short}, {middle} and {long} positions do not follow a P + b P^2")
    return linear, quadratic


@contextmanager
def _gradients_aside(model: ComposerModel) -> Iterator[None]:
    # A forward that was replaced by a function is shared by copies: it runs the model's own weights.
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _hollow_copy(model: ComposerModel) -> ComposerModel:
    """The model with a single zero in the place of each weight, and without anybody's hooks."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(_zeros(parameter), parameter.requires_grad)
    for buffer in model.buffers():
        values = torch.zeros_like(buffer, device="cpu") if buffer.is_meta else buffer.detach()
        memo[id(buffer)] = values.to("cpu", copy=True)  # a forward may write to it
    # Shared, not copied: large tokenizers, and configs, of which MPT's hold objects that refuse to be.
    tokenizer = getattr(model, "tokenizer", None)
    memo[id(tokenizer)] = tokenizer
    for module in model.modules():
        config = getattr(module, "config", None)
        memo.setdefault(
            id(config), _in_plain_attention(config) if isinstance(module, PreTrainedModel) else config
        )
    hollow = copy.deepcopy(model, memo)
    hollow.eval()  # neither dropout nor activation checkpointing
    for module in hollow.modules():
        for name, held in vars(module).items():
            if name.endswith("_hooks") and isinstance(held, dict):
                held.clear()
    return hollow


def _in_plain_attention(config: Any) -> Any:
    """A config of transformers that names flash attention, which needs a GPU, without it."""
    if "flash" not in str(getattr(config, "_attn_implementation", None)):
        return config
    plain = copy.deepcopy(config)
    plain._attn_implementation = "eager"  # looked up in every forward
    return plain


def _counted(hollow: ComposerModel, P: int) -> float:
    ids_BP = torch.zeros(1, P, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        torch.device("cpu"),
        sdpa_kernel(SDPBackend.MATH),  # in products that the counter knows, on any device
        _HollowProducts(),
        counter,
    ):
        warnings.simplefilter("ignore")
        outputs = hollow({"input_ids": ids_BP})
        outputs["logits"].float().sum().backward()
    hollow.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


class _HollowProducts(TorchDispatchMode):
    """Gives zeros for what costs time or memory: products, and whatever is made of weights alone.

    All else is computed, so that code which depends on values, such as the choice of experts, runs.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        products = func.overloadpacket in flop_registry or func.overloadpacket is _EMBEDDING_BACKWARD
        if not products and not (tensors and all(map(_is_hollow, tensors)) and not func.is_view):
            return func(*args, **kwargs)
        on_meta = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return tree_map_only(Tensor, _zeros, func(*on_meta[0], **on_meta[1]))


_EMBEDDING_BACKWARD = torch.ops.aten.embedding_dense_backward
_SMALL = 1 << 20


def _zeros(like: Tensor) -> Tensor:
    if like.numel() <= _SMALL:
        return torch.zeros(like.shape, dtype=like.dtype)
    return torch.zeros((), dtype=like.dtype).expand(like.shape)


def _is_hollow(tensor: Tensor) -> bool:
    return tensor.numel() > _SMALL and not any(tensor.stride())
