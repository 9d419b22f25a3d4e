"""A run's configuration: read, checked, and what it asks for prepared, before data and model are made.

llm-foundry builds the tokenizer before any data loader, so data that a run makes for itself has to
exist before llm-foundry reads the configuration: ``train.py`` calls :func:`prepare` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from composer.core import Time, TimeUnit
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from patch_algorithm.algorithm.batch_checks import check_positions, check_rows
from patch_algorithm.algorithm.patch_level import PatchLevel
from patch_algorithm.common.arguments import is_whole
from patch_algorithm.stages.boundaries import run_length
from patch_algorithm.stages.plan import StagePlan

__all__ = ["check_config", "prepare", "read_config"]

# Loaders whose rows all have the length that their data set is asked for, and whether they may be padded:
# 'text' pads where its shards hold text instead of tokens, which the configuration does not say.
_LOADERS_OF_WHOLE_ROWS = {"text": True, "pile": False}


def read_config(yaml_path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Reads a YAML and merges ``key=value`` overrides into it, as llm-foundry will.

    Args:
        yaml_path: The configuration file.
        overrides: Dotted overrides such as ``max_duration=20ba``.

    Raises:
        ValueError: If the file is missing or no mapping, or an override is not ``key=value``.
    """
    path = Path(yaml_path)
    if not path.is_file():
        raise ValueError(f"there is no configuration file {yaml_path!r}.")
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"the override {override!r} is not of the form key=value.")
    try:
        cfg = OmegaConf.load(path)
        if overrides:
            cfg = OmegaConf.merge(cfg, OmegaConf.from_cli(list(overrides)))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{yaml_path} with its overrides cannot be read: {error}") from error
    except TypeError as error:  # OmegaConf, where the path of an override leads into a list
        raise ValueError(
            f"the overrides do not fit into {yaml_path}: {error}. A list is overridden as a whole, key=[...]."
        ) from error
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"{yaml_path} holds a list; a configuration is a mapping of keys to values.")
    return cfg


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
    for index in range(len(plan.stages)):
        check_rows(T, plan.tokens_per_position(index), L, padded)
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
    if not isinstance(max_duration, str) and not is_whole(max_duration):
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
    return value if is_whole(value) else None


def prepare(cfg: DictConfig) -> Path | None:
    """Prepares the data that a configuration asks for under ``variables``.

    Today that is the built-in corpus, ``variables.builtin_corpus``; see
    :class:`patch_algorithm.data.corpus.BuiltinCorpus` for its keys.

    Args:
        cfg: The merged configuration of the run.

    Returns:
        The folder of the prepared data, or ``None`` where nothing is asked for.

    Raises:
        ValueError: If the request is not valid, or the folder holds something else.
    """
    try:
        asked = OmegaConf.select(cfg, "variables.builtin_corpus")
        if isinstance(asked, DictConfig):
            asked = OmegaConf.to_container(asked, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"variables.builtin_corpus cannot be resolved: {error}") from error
    if asked is None:
        return None
    from patch_algorithm.data.corpus import BuiltinCorpus, prepare_builtin_corpus

    return prepare_builtin_corpus(BuiltinCorpus.from_variables(asked))
