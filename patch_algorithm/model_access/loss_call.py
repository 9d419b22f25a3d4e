"""What a model's ``loss`` returns in a patch step: the patch loss and the terms that belong to it.

The patch loss replaces the next-token loss. Three kinds of terms are added to it: the router
loss that a Hugging Face mixture of experts returns as ``aux_loss``, what MPT's own loss adds for MegaBlocks
layers, and what the model's ``patch_loss_terms(outputs, batch)`` returns, if it has such a method. Other
models' own loss is not called.

Shapes: B rows, P positions, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from inspect import getattr_static
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from patch_algorithm.loss.cross_entropy import IGNORE_INDEX
from patch_algorithm.model_access.reading import adds_router_loss, router_loss_weight

__all__ = ["has_own_loss", "logits_of", "replace_loss", "restore_loss"]

_TERMS = "patch_loss_terms"
# Their losses are the mean over next tokens and router losses, as read in their sources.
_KNOWN = ("composer", "llmfoundry")


def has_own_loss(model: ComposerModel) -> bool:
    """Whether a model has an unknown loss of its own and does not say what to add to the patch loss."""
    if callable(getattr(model, _TERMS, None)):
        return False
    of_class: Any = type(model).loss
    of_instance = vars(model).get("loss")
    # A deep copy made in mid-step holds the method of its class.
    replaced = of_instance is not None and getattr(of_instance, "__func__", None) is not of_class
    return replaced or getattr(of_class, "__module__", "").partition(".")[0] not in _KNOWN


def logits_of(outputs: Any) -> Tensor:
    """The logits that a model's forward returned, ``[B, P, V]``.

    Raises:
        ValueError: If the outputs are neither logits nor a mapping that holds them.
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs
    if not isinstance(logits, Tensor):
        holds = f" of {sorted(outputs)}" if isinstance(outputs, Mapping) else ""
        raise ValueError(
            f"The model's forward returned {type(outputs).__name__}{holds}. Patch-level training needs the "
            "logits: a tensor, or a mapping with 'logits'. Return one of these, or train at token level."
        )
    return logits


def replace_loss(model: ComposerModel, patch_loss: Tensor, outputs: Any, batch: Any) -> None:
    """Makes the model's next ``loss`` call return the patch loss, if it is one of these outputs or batch."""
    restore_loss(model)
    model.loss = _LossCall(model, patch_loss, outputs, batch)  # in front of the class's method


def restore_loss(model: ComposerModel) -> None:
    """Restores the model's own loss call, if it is replaced."""
    call = vars(model).get("loss")
    if isinstance(call, _LossCall):
        call.give_back()


class _LossCall:
    """A model's ``loss`` for one call: it restores the model's own before it does anything else.

    Called with other outputs than those it was made for, as after an interrupted fit, it calls the model's
    own loss. A deep copy of the model has its own loss, too.
    """

    def __init__(self, model: ComposerModel, patch_loss: Tensor, outputs: Any, batch: Any) -> None:
        self._model = model
        self._of_instance: Callable[..., Any] | None = vars(model).get("loss")
        self._patch_loss, self._outputs, self._batch = patch_loss, outputs, batch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.give_back()
        if not any(value is self._outputs or value is self._batch for value in (*args, *kwargs.values())):
            own = self._of_instance or _loss_of_class(self._model)
            return own(*args, **kwargs)
        return _with_terms(self._model, self._patch_loss, self._outputs, self._batch)

    def give_back(self) -> None:
        if vars(self._model).get("loss") is not self:
            return
        if self._of_instance is None:
            del self._model.loss
        else:
            self._model.loss = self._of_instance

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._of_instance is not None:
            return copy.deepcopy(self._of_instance, memo)
        return _loss_of_class(copy.deepcopy(self._model, memo))


def _loss_of_class(model: ComposerModel) -> Callable[..., Any]:
    """The model's ``loss`` as its class defines it, which may be a static method."""
    return getattr_static(type(model), "loss").__get__(model, type(model))


def _with_terms(model: ComposerModel, patch_loss: Tensor, outputs: Any, batch: Any) -> Any:
    """The loss: a scalar, or, where terms have names, a dict with a ``total``."""
    loss = patch_loss
    router_loss = outputs.get("aux_loss") if isinstance(outputs, Mapping) else None
    if router_loss is not None:
        loss = loss + router_loss_weight(model) * router_loss
    named = dict(_router_terms_of_mpt(model, outputs))
    terms = _terms_of(model, outputs, batch)
    if isinstance(terms, Tensor):
        loss = loss + terms
    else:
        named |= terms
    return {"total": sum(named.values(), loss), "loss": loss, **named} if named else loss


def _router_terms_of_mpt(model: ComposerModel, outputs: Any) -> dict[str, Tensor]:
    """What MPT's own loss adds for MegaBlocks layers: its value if all labels are ignored."""
    if not adds_router_loss(model):
        return {}
    logits_BPV = logits_of(outputs)
    # Detached, so that no gradient of the size of the logits is made for a single row of them.
    stand_in = CausalLMOutputWithPast(logits=logits_BPV[:1, :1].detach())  # pyright: ignore
    labels = torch.full((1, 1), IGNORE_INDEX, device=logits_BPV.device)
    own: Any = model.loss(stand_in, {"labels": labels})
    return {name: term for name, term in own.items() if name not in ("total", "loss")}


def _terms_of(model: ComposerModel, outputs: Any, batch: Any) -> Tensor | dict[str, Tensor]:
    method: Callable[..., Any] | None = getattr(model, _TERMS, None)
    if not callable(method):
        return {}
    terms = method(outputs, batch)
    values = list(terms.values()) if isinstance(terms, Mapping) else [terms]
    if not all(isinstance(value, Tensor) and value.numel() == 1 for value in values):
        raise ValueError(
            f"{_TERMS} of {type(model).__name__} returned {_described(terms)}; expected a scalar tensor or "
            "a mapping of names to scalar tensors."
        )
    if not isinstance(terms, Mapping):
        return terms.squeeze()
    if reserved := {"total", "loss"} & set(terms):
        raise ValueError(
            f"{_TERMS} of {type(model).__name__} names a term {reserved.pop()!r}. That name is taken by the "
            "whole loss or the patch loss; choose another."
        )
    return {name: value.squeeze() for name, value in terms.items()}


def _described(terms: Any) -> str:
    if isinstance(terms, Mapping):
        return "{" + ", ".join(f"{name!r}: {_described(value)}" for name, value in terms.items()) + "}"
    return f"a tensor of shape {tuple(terms.shape)}" if isinstance(terms, Tensor) else type(terms).__name__
