"""Checks a run's configuration and prepares the data it asks for, before anything is built.

llm-foundry builds the tokenizer before any data loader, so the data that a run prepares for itself must
exist before llm-foundry reads the configuration: ``train.py`` calls :func:`prepare` first.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from patch_algorithm.checks.finding import Finding
from patch_algorithm.planning.config import read_config, value_of
from patch_algorithm.planning.doctor import accepted_findings, examine
from patch_algorithm.planning.run_file import RunFile
from patch_algorithm.planning.stage_rows import check_stages
from patch_algorithm.stages.plan import StagePlan

__all__ = ["check_config", "check_start", "prepare", "read_config"]


def check_config(cfg: DictConfig) -> StagePlan | None:
    """Checks ``algorithms.patch_level`` against ``max_duration``, rows and model of a configuration.

    What the configuration leaves open, such as the length of an epoch, is checked when training
    starts.

    Args:
        cfg: The merged configuration of an llm-foundry run.

    Returns:
        The stages, as far as they are known; ``None`` for a run without ``patch_level``.

    Raises:
        ValueError: For unknown or bad arguments, stages that do not fit the run's length, and rows
            that cannot be folded or cut.
    """
    run = RunFile.from_config(cfg)
    check_stages(run)
    return None if run.algorithm is None else run.plan


def check_start(cfg: DictConfig, path: str) -> tuple[list[Finding], tuple[str, ...]]:
    """Makes all checks of a run that is about to start on this machine.

    Args:
        cfg: The merged configuration.
        path: The file that it was read from.

    Returns:
        What was found, the worst first, and the ids of findings that need not be shown again when training
        starts.
    """
    found = examine(cfg, path, starts_here=True)
    return found, (*accepted_findings(cfg), *(one.id for one in found))


def prepare(cfg: DictConfig) -> Path | None:
    """Prepares the data that a configuration asks for under ``variables``.

    At present this is the built-in corpus, ``variables.builtin_corpus``; see
    :class:`patch_algorithm.data.corpus.BuiltinCorpus` for its keys.

    Args:
        cfg: The merged configuration of the run.

    Returns:
        The folder of the prepared data; ``None`` if none is asked for.

    Raises:
        ValueError: If the request is not valid, or the folder holds something else.
    """
    asked = value_of(cfg, "variables.builtin_corpus")
    if asked is None:
        return None
    from patch_algorithm.data.corpus import BuiltinCorpus, prepare_builtin_corpus

    return prepare_builtin_corpus(BuiltinCorpus.from_variables(asked))
