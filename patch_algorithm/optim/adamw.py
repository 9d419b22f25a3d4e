"""torch's AdamW for llm-foundry, whose own optimizer gives ``weight_decay`` another meaning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["AdamW", "adamw"]


class AdamW(torch.optim.AdamW):
    """:class:`torch.optim.AdamW`, with norms and biases exempt from weight decay if wanted.

    Each step multiplies the weights by ``1 - lr * weight_decay`` (Loshchilov and Hutter, arXiv 1711.05101,
    as torch implements it): the 0.1 of most papers. Composer's ``DecoupledAdamW`` multiplies them by
    ``1 - lr / initial_lr * weight_decay``. With 0.1 that removes a tenth of the weights at every step at
    full learning rate; at a peak rate of 3e-4 its equivalent of 0.1 here is 3e-5.

    Args:
        params (Iterable[Tensor] | Iterable[dict[str, Any]]): Parameters, pairs of name and parameter, or
            groups of them.
        lr (float | Tensor, optional): Learning rate. Default: ``1e-3``.
        betas (tuple[float, float], optional): Decay of the two running averages. Default: ``(0.9, 0.999)``;
            language models are mostly trained with ``(0.9, 0.95)``.
        eps (float, optional): Added to the denominator. Default: ``1e-8``.
        weight_decay (float, optional): As above. Default: ``1e-2``.
        decay_norms_and_biases (bool, optional): Whether parameters of one dimension or none also decay. If
            not, they get parameter groups of their own, except in a group that states its ``weight_decay``:
            that applies to all its parameters. Default: ``True``, as in torch.
        **kwargs (Any): Further arguments of :class:`torch.optim.AdamW`: ``amsgrad``, ``foreach``, ``fused``
            and so on.

    Raises:
        ValueError: For values out of range, and parameters that an FSDP1 wrapper has flattened.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        decay_norms_and_biases: bool = True,
        **kwargs: Any,
    ) -> None:
        if not decay_norms_and_biases:
            params = _exempt_norms_and_biases(params)
        super().__init__(
            params,
            lr=lr,
            betas=(betas[0], betas[1]),  # a list, coming from YAML
            eps=eps,
            weight_decay=weight_decay,
            **kwargs,
        )


adamw = AdamW
"""The name in llm-foundry's registry."""


def _exempt_norms_and_biases(params: Iterable[Any]) -> list[dict[str, Any]]:
    """Splits each group in two, the second of which does not decay; empty groups are left out."""
    given = list(params)
    groups = given if given and isinstance(given[0], Mapping) else [{"params": given}]
    split: list[dict[str, Any]] = []
    for group in groups:
        members = group["params"]
        members = [members] if isinstance(members, Tensor) else list(members)
        if "weight_decay" in group:
            split.append({**group, "params": members})
            continue
        exempt = [_of(member).ndim <= 1 for member in members]
        for which in (False, True):
            chosen = [member for member, is_exempt in zip(members, exempt, strict=True) if is_exempt is which]
            if chosen:
                split.append({**group, "params": chosen} | ({"weight_decay": 0.0} if which else {}))
    return split


def _of(member: Any) -> Tensor:
    """The parameter of an entry, which may be a pair with its name."""
    parameter = member[1] if isinstance(member, tuple) else member
    # FSDP1 marks what it has flattened: its own parameter, or with use_orig_params the model's.
    if getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False):
        raise ValueError(
            "adamw: decay_norms_and_biases=False needs the model's own parameters, and FSDP has flattened "
            "these. Build the optimizer before the model is wrapped, as llm-foundry does."
        )
    return parameter
