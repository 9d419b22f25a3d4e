"""Where patch-level training touches a model instance: its input embedding and its loss call.

Nothing is replaced globally and no module is exchanged. Hooks on the one embedding module look a
patch's tokens up and return their mean; everything behind it sees a plain sequence of positions.

Shapes: B rows, P positions, K patch size, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from patch_algorithm.loss.cross_entropy import IGNORE_INDEX
from patch_algorithm.model_access.reading import input_embedding
from patch_algorithm.patching.batches import PATCH_IDS, PATCH_MASK
from patch_algorithm.patching.rows import mean_of_patch

__all__ = ["ModelTaps"]

_ROUTER_WEIGHT = "router_aux_loss_coef"


class ModelTaps:
    """Attaches to one model instance and detaches again, leaving nothing behind.

    The hooks act only while armed with the ids of a microbatch, that is from its training forward to
    the end of its backward (activation checkpointing runs them again there), and only in training
    mode: evaluation, generation and export meet an ordinary model at any time.

    Args:
        model: The (unwrapped) Composer model whose embedding and loss call are tapped.
    """

    def __init__(self, model: ComposerModel) -> None:
        self._model = model
        self._feed = _EmbeddingFeed()
        self._handles: list[Any] = []
        self._loss_replaced = False
        self._instance_loss: Callable[..., Any] | None = None
        self._checked_own_loss = False

    @property
    def attached(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles)

    def attach(self) -> None:
        """Registers the hooks; does nothing if they are in place."""
        if self._handles:
            return
        embedding = input_embedding(self._model)
        self._handles = [
            embedding.register_forward_pre_hook(self._feed.swap_ids, with_kwargs=True),
            embedding.register_forward_hook(self._feed.take_mean),
        ]

    def detach(self) -> None:
        """Removes the hooks and gives the loss call back."""
        self.disarm()
        self.restore_loss()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def arm(self, batch: Mapping[str, Any]) -> None:
        """Makes the next lookup of the batch's ``input_ids`` one of its folded ids."""
        self._feed.lookups = 0
        self._feed.mask_BPK = batch.get(PATCH_MASK)
        self._feed.ids_BPK = batch[PATCH_IDS]

    def disarm(self) -> None:
        """Makes the hooks do nothing."""
        self._feed.ids_BPK = self._feed.mask_BPK = None

    def require_one_lookup(self) -> None:
        """Checks, after a forward pass, that the embedding was looked up exactly once.

        Raises:
            ValueError: If not.
        """
        if self._feed.lookups != 1:
            # An embedding in evaluation mode is left alone, too.
            raise ValueError(
                f"The input embedding of {type(self._model).__name__} was looked up {self._feed.lookups} "
                "times in one training forward; patch-level training needs exactly one lookup of the token "
                "ids, by an embedding in training mode. Train this model at token level."
            )

    def replace_loss(self, patch_loss: Tensor, outputs: Any) -> None:
        """Makes the model's next ``loss`` call return ``patch_loss`` and what the model adds to it.

        Mixture-of-experts models add router losses to the next-token loss. They are had from the
        model's own loss call, given labels that are all ignored.

        Args:
            patch_loss: Scalar, what stands in for the next-token loss.
            outputs: What the model's forward returned.
        """
        self.restore_loss()
        self._instance_loss = vars(self._model).get("loss")
        own_loss: Callable[..., Any] = self._model.loss

        def loss(*_: Any, **__: Any) -> Any:
            extra = own_loss(*_without_tokens(outputs, self._model))
            self._require_finite(extra)
            return _add(patch_loss, extra)

        self._model.loss = loss  # an attribute of this instance, in front of the class's method
        self._loss_replaced = True

    def restore_loss(self) -> None:
        """Gives the model's own loss call back."""
        if self._loss_replaced:
            del self._model.loss
            if self._instance_loss is not None:
                self._model.loss = self._instance_loss
            self._instance_loss = None
            self._loss_replaced = False

    def _require_finite(self, extra: Any) -> None:
        if self._checked_own_loss:
            return
        values = extra.values() if isinstance(extra, Mapping) else [extra]
        if not all(isinstance(v, Tensor) and bool(torch.isfinite(v).all()) for v in values):
            raise ValueError(
                f"The loss of {type(self._model).__name__} is not finite where all labels are ignored "
                f"({extra}), so what it adds to the next-token loss cannot be told."
            )
        self._checked_own_loss = True


class _EmbeddingFeed:
    """What the two hooks read. It knows no module, so that a deep copy of a model stays small."""

    def __init__(self) -> None:
        self.ids_BPK: Tensor | None = None
        self.mask_BPK: Tensor | None = None
        self.lookups = 0

    def swap_ids(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.ids_BPK is None or not module.training or not args:
            return None
        # A tied embedding is called again with hidden states, to make the logits.
        if args[0].is_floating_point():
            return None
        if args[0].shape != self.ids_BPK.shape[:2]:
            raise ValueError(
                f"The input embedding was given ids of shape {tuple(args[0].shape)} where the batch has "
                f"patches of shape {tuple(self.ids_BPK.shape)}: this model changes its input ids before "
                "it looks them up, and cannot be trained in patches."
            )
        self.lookups += 1
        return (self.ids_BPK, *args[1:]), kwargs

    def take_mean(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self.ids_BPK is None or not module.training or not args or args[0].dim() != 3:
            return None
        if args[0].is_floating_point():
            return None
        return mean_of_patch(output, self.mask_BPK)


def _without_tokens(
    outputs: Mapping[str, Any], model: ComposerModel
) -> tuple[CausalLMOutputWithPast, dict[str, Tensor]]:
    """Outputs and a batch that tell a model's loss call nothing but its router losses."""
    logits_BPV: Tensor = outputs["logits"]
    zero = logits_BPV.new_zeros((), dtype=torch.float32)
    router_loss = outputs.get("aux_loss")
    if router_loss is not None:
        weight = getattr(getattr(model, "config", None), _ROUTER_WEIGHT, None)
        if weight is None:
            raise ValueError(
                f"{type(model).__name__} returns a router loss, but its config has no "
                f"{_ROUTER_WEIGHT} to weigh it by. Set output_router_logits to false in its config."
            )
        zero = zero + weight * router_loss
    # Detached, so that no gradient of the size of the logits is made for a single row of them.
    stand_in = CausalLMOutputWithPast(loss=zero, logits=logits_BPV[:1, :1].detach())  # pyright: ignore
    labels = torch.full((1, 1), IGNORE_INDEX, device=logits_BPV.device)
    return stand_in, {"labels": labels}


def _add(patch_loss: Tensor, extra: Any) -> Any:
    if not isinstance(extra, Mapping):
        return patch_loss + extra
    added = dict(extra)
    added["total"] = patch_loss + extra["total"]
    if "loss" in extra:
        added["loss"] = patch_loss + extra["loss"]
    return added
