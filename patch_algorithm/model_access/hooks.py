"""The hooks on a model: its input embedding looks patches up, and its loss call gives the patch loss.

Nothing is replaced globally and no module is exchanged. The Composer model's own forward is given the
batch with ``input_ids`` made for this one call, and the embedding looks patches up only if it is given that
very tensor: an interrupted fit leaves nothing behind that could affect another call.

Shapes: B rows, P positions, K patch size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patch_algorithm.common.announce import announce
from patch_algorithm.model_access.loss_call import has_own_loss, replace_loss, restore_loss
from patch_algorithm.model_access.reading import further_embeddings, input_embedding
from patch_algorithm.patching.batches import PATCH_IDS, PATCH_MASK
from patch_algorithm.patching.rows import mean_of_patch

__all__ = ["ModelHooks", "detach_hooks"]

_HANDLES: WeakKeyDictionary[nn.Module, list[RemovableHandle]] = WeakKeyDictionary()
"""Our hooks on every model that has some, whichever run attached them."""


def detach_hooks(model: ComposerModel) -> None:
    """Removes all our hooks from a model and restores its loss call, whichever run attached them."""
    for handle in _HANDLES.pop(model, ()):
        handle.remove()
    restore_loss(model)


class ModelHooks:
    """Attaches to one model instance and detaches again, leaving nothing behind.

    In training mode, a forward pass of the Composer model whose batch holds :data:`.PATCH_IDS` reads
    patches, also when its activations are recomputed. For every other forward pass the model is an ordinary
    one. So is a deep copy. The model is not kept alive: an algorithm that is given to several trainers
    outlives their models.

    Args:
        model: The (unwrapped) Composer model.
    """

    def __init__(self, model: ComposerModel) -> None:
        self._model_ref = ref(model)  # Composer's models reach their trainer's state, by their logger
        self._lookup = _PatchLookup()
        self._handles: list[RemovableHandle] = []
        self._loss_announced = False

    @property
    def _model(self) -> ComposerModel:
        model = self._model_ref()
        if model is None:
            raise ReferenceError("The model that these hooks are for was released.")
        return model

    @property
    def attached(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._handles) and _HANDLES.get(self._model) is self._handles

    def attach(self) -> None:
        """Registers the hooks on the modules that the model has now, in front of those of others."""
        model, lookup = self._model, self._lookup
        detach_hooks(model)  # a fit that broke off has left some, on an embedding that may be gone
        self.disarm()
        embedding = input_embedding(model)
        self._handles = _HANDLES[model] = []
        keep = self._handles.append
        keep(model.register_forward_pre_hook(lookup.arm, prepend=True, with_kwargs=True))
        keep(embedding.register_forward_pre_hook(lookup.look_up_patches, prepend=True, with_kwargs=True))
        keep(embedding.register_forward_hook(lookup.average_patches, prepend=True, with_kwargs=True))
        for other in further_embeddings(model).values():
            keep(other.register_forward_pre_hook(lookup.notice, prepend=True, with_kwargs=True))
        if has_own_loss(model) and not self._loss_announced:
            self._loss_announced = True
            announce(
                f"patch_level: patch stages use the patch loss instead of {type(model).__name__}.loss. If "
                "that loss has further terms, such as a z-loss, give the model a method "
                "patch_loss_terms(outputs, batch) that returns them."
            )

    def detach(self) -> None:
        """Removes the hooks, restores the loss call and releases the last batch."""
        if self.attached:
            detach_hooks(self._model)
        self._handles = []
        self.disarm()

    def disarm(self) -> None:
        """Releases the last batch and restores the loss call."""
        self._lookup.disarm()
        restore_loss(self._model)

    def check_forward(self, batch: Mapping[str, Any]) -> None:
        """Checks, after a forward pass, that the model read the batch's patches, all of them and once.

        Raises:
            ValueError: If not; it says what the model did instead.
        """
        name, lookup = type(self._model).__name__, self._lookup
        if PATCH_IDS not in batch:
            raise ValueError(
                f"The batch has lost {PATCH_IDS!r} since patch_level folded it; it holds {sorted(batch)}. "
                "Make callbacks and microbatch_transforms keep keys that they do not know."
            )
        if lookup.second_table is not None:
            raise ValueError(
                f"{name} looks token ids up in a second embedding (of {lookup.second_table} rows). "
                "Per-layer and value embeddings cannot be averaged from outside the model. Train this "
                "model at token level."
            )
        if lookup.other_shape is not None:
            raise ValueError(
                f"The input embedding of {name} was given ids of shape {lookup.other_shape} that are not "
                f"the batch's 'input_ids' of shape {tuple(batch[PATCH_IDS].shape[:2])}: the model changes "
                "its input ids before it looks them up, so patches cannot replace them. Train this model "
                "at token level."
            )
        if lookup.lookups != 1:
            # An embedding in evaluation mode is left alone, too. Compiled code does not notice new hooks.
            compiled = "" if lookup.lookups else " (If it was compiled before, call torch.compiler.reset().)"
            raise ValueError(
                f"The input embedding of {name} was looked up {lookup.lookups} times in one training "
                "forward. Patch-level training needs exactly one lookup of the token ids, by an embedding in "
                f"training mode. Train this model at token level.{compiled}"
            )

    def check_backward(self) -> None:
        """Checks, after a backward pass, that activations were recomputed from the same ids, if at all.

        Raises:
            ValueError: If not.
        """
        shape, armed = self._lookup.other_shape, self._lookup.shape
        if shape is not None and shape == armed:
            raise ValueError(
                f"Between the forward and backward passes of a patch step, the input embedding of "
                f"{type(self._model).__name__} was given other ids of the same shape, {shape}. If "
                "activations are recomputed from copies of the ids (checkpointing with CPU offload), keep "
                "the embedding out of the checkpointed part."
            )

    def replace_loss(self, patch_loss: Tensor, outputs: Any, batch: Any) -> None:
        """Makes the model's next ``loss`` call return ``patch_loss`` and what belongs to it.

        See :mod:`patch_algorithm.model_access.loss_call`.

        Args:
            patch_loss: Scalar, what stands in for the next-token loss.
            outputs: What the model's forward returned.
            batch: The trainer's batch.
        """
        replace_loss(self._model, patch_loss, outputs, batch)

    def restore_loss(self) -> None:
        """Restores the model's own loss call, if it was not called."""
        restore_loss(self._model)


class _PatchLookup:
    """The hooks, and the batch that they are armed with.

    It holds no module, and a copy of it never does anything: a deep copy of a model is an ordinary model.
    """

    def __init__(self) -> None:
        self._is_copy = False
        self._ids_BP: Tensor | None = None
        self._patches_BPK: Tensor | None = None
        self._mask_BPK: Tensor | None = None
        self._averages = False  # from the lookup of patches until its output is there
        self._forget_lookups()

    def __deepcopy__(self, memo: dict[int, Any]) -> _PatchLookup:
        copied = _PatchLookup()
        copied._is_copy = True
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return vars(self.__deepcopy__({}))

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the armed ids."""
        return None if self._ids_BP is None else tuple(self._ids_BP.shape)

    def disarm(self) -> None:
        """Makes the hooks do nothing."""
        self._ids_BP = self._patches_BPK = self._mask_BPK = None

    def arm(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """On the Composer model, before its forward. Another batch's forward leaves the armed one alone.

        A callback may evaluate something before the armed batch's activations are recomputed.
        """
        batch = args[0] if args else kwargs.get("batch")
        if self._is_copy or not module.training or not isinstance(batch, Mapping) or PATCH_IDS not in batch:
            return None
        self._ids_BP = None  # first and last, so that a forward cut short is not armed by halves
        self._patches_BPK = batch[PATCH_IDS]
        self._mask_BPK = batch.get(PATCH_MASK)
        self._forget_lookups()
        # Nobody else has this tensor, and it is a view of none: see _is_armed.
        self._ids_BP = batch["input_ids"].clone(memory_format=torch.contiguous_format)
        own_batch = {**batch, "input_ids": self._ids_BP}
        return ((own_batch, *args[1:]), kwargs) if args else (args, {**kwargs, "batch": own_batch})

    def look_up_patches(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """On the input embedding: the armed batch's patches take the place of its ids."""
        self._averages = False
        if self._ids_BP is None or not module.training:
            return None
        patches_BPK, found = self._patches_BPK, False
        for ids in _ids_among(args, kwargs):
            found = self._is_armed(ids)
            if not found:
                self.other_shape = tuple(ids.shape)
        if not found:
            return None
        self.lookups += 1
        self._averages = True
        return (
            tuple(patches_BPK if self._is_armed(value) else value for value in args),
            {key: patches_BPK if self._is_armed(value) else value for key, value in kwargs.items()},
        )

    def average_patches(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """On the input embedding, after a lookup of patches: their means."""
        if not self._averages:
            return None
        self._averages = False
        return mean_of_patch(output, self._mask_BPK)

    def notice(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """On every further embedding: whether it is given the armed ids."""
        if self._ids_BP is None or not module.training:
            return
        for ids in _ids_among(args, kwargs):
            if self._is_armed(ids):
                self.second_table = module.num_embeddings

    def _forget_lookups(self) -> None:
        self.lookups = 0
        self.other_shape: tuple[int, ...] | None = None
        self.second_table: Any = None

    def _is_armed(self, value: Any) -> bool:
        """Whether a value is the armed ids, or a view of all of them (models flatten leading dimensions)."""
        armed_BP = self._ids_BP
        if not isinstance(value, Tensor) or armed_BP is None:
            return False
        if value is armed_BP:
            return True
        if torch.compiler.is_compiling():  # where tensors have no memory yet
            return value._base is armed_BP and value.shape == armed_BP.shape
        return value.dtype == armed_BP.dtype and value.is_set_to(armed_BP)


def _ids_among(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The token ids of a call. A tied embedding is called again with hidden states, to make the logits."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool:
            yield value
