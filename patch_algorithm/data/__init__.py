"""Data for training: what a configuration asks to be prepared, made before training starts.

llm-foundry builds the tokenizer before any data loader, so data that a run makes for itself has to
exist before llm-foundry reads the configuration: ``train.py`` calls :func:`prepare` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["prepare", "read_config"]


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


def prepare(cfg: DictConfig) -> Path | None:
    """Prepares the data that a configuration asks for under ``variables``.

    Today that is the built-in corpus, ``variables.builtin_corpus``; see
    :class:`patch_algorithm.data.builtin.BuiltinCorpus` for its keys.

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
    from patch_algorithm.data.builtin import BuiltinCorpus, prepare_builtin_corpus

    return prepare_builtin_corpus(BuiltinCorpus.from_variables(asked))
