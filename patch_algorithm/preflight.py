"""What a configuration alone says of a run in patches, checked before data and model are made."""

from __future__ import annotations

from inspect import signature
from typing import Any

from composer.core import Time, TimeUnit
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from patch_algorithm.algorithm import PatchLevel
from patch_algorithm.checks import check_positions, check_rows
from patch_algorithm.stages import StagePlan, run_length

__all__ = ["check_config"]

# Loaders whose rows all have the length that their data set is asked for, and whether they may be padded:
# 'text' pads where its shards hold text instead of tokens, which the configuration does not say.
_LOADERS_OF_WHOLE_ROWS = {"text": True, "pile": False}


def check_config(cfg: DictConfig) -> StagePlan | None:
    """Checks ``algorithms.patch_level`` against ``max_duration``, rows and model of a configuration.

    What the configuration leaves open, such as the length of an epoch, is checked when training
    starts.

    Args:
        cfg: The merged configuration of an llm-foundry run.

    Returns:
        The stages, as far as they can be told; ``None`` for a run without ``patch_level``.

    Raises:
        ValueError: For unknown or bad arguments, stages that do not fit the run's length, and rows
            that cannot be folded or cut.
    """
    algorithm = _algorithm(_value(cfg, "algorithms"))
    if algorithm is None:
        return None
    plan = algorithm.plan_for(_length(_value(cfg, "max_duration")))
    context = _whole_number(_value(cfg, "model.max_seq_len"))
    if algorithm.seq_len is not None:
        check_positions(algorithm.seq_len, context)
    T = _whole_number(_value(cfg, "train_loader.dataset.max_seq_len"))
    L = algorithm.seq_len or (None if T is None or context is None else min(T, context))
    padded = _LOADERS_OF_WHOLE_ROWS.get(str(_value(cfg, "train_loader.name")))
    if plan is None or T is None or L is None or padded is None:
        return plan
    for stage in plan.stages:
        check_rows(T, stage.k if algorithm.patch_inputs else 1, L, padded)
    return plan


def _algorithm(algorithms: Any) -> PatchLevel | None:
    if not isinstance(algorithms, dict) or "patch_level" not in algorithms:
        return None
    arguments = algorithms["patch_level"] or {}
    known = list(signature(PatchLevel).parameters)
    if not isinstance(arguments, dict) or not set(arguments) <= set(known):
        raise ValueError(
            f"algorithms.patch_level is {arguments!r}; expected a mapping with keys among {', '.join(known)}."
        )
    return PatchLevel(**arguments)


def _length(max_duration: Any) -> Time[int] | None:
    """The length of the run, where it can be counted without a data loader."""
    if not isinstance(max_duration, (str, int)) or isinstance(max_duration, bool):
        return None
    try:
        time = Time.from_input(max_duration, TimeUnit.EPOCH)
    except (ValueError, TypeError) as error:
        raise ValueError(f"max_duration={max_duration!r} cannot be read as a time: {error}") from error
    return None if time.unit == TimeUnit.EPOCH else run_length(time, None)


def _value(cfg: DictConfig, key: str) -> Any:
    try:
        value = OmegaConf.select(cfg, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ValueError(f"{key} cannot be resolved: {error}") from error


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
