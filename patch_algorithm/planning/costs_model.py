"""The model of a run, built without weights: its parameters, and the FLOPs of a row."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from composer.models import ComposerModel

from patch_algorithm.model_access.flops import FlopCounter, flop_counter
from patch_algorithm.model_access.reading import context_length, input_embedding
from patch_algorithm.planning.run_file import RunFile

__all__ = ["ModelFacts", "build_model", "read_model_facts"]


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it is trained.

    Attributes:
        name: Its class; llm-foundry's name of it where it could not be built.
        parameters: All its parameters, each once; ``None`` where it could not be built.
        vocabulary: Entries of its input embedding.
        context: The longest sequence it takes, in positions.
        row_flops: FLOPs of the forward and the backward of a row of P positions; ``None`` where nobody can
            tell.
        fault: Why it could not be built or counted; empty where it could.
    """

    name: str
    parameters: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    row_flops: Callable[[int], float] | None = None
    fault: str = ""


def read_model_facts(run: RunFile) -> ModelFacts:
    """Builds the model of a run on the meta device and counts it.

    FLOPs come from :func:`.flop_counter`, as those that ``patch_monitor`` logs.

    Raises:
        ValueError: If the section ``model`` cannot be built. A config that is not in reach, or a package that
            is not installed here, is no error but a ``fault``.
    """
    try:
        with _quiet():
            model = build_model(run)
    except (OSError, ImportError) as error:
        given = run.model.arguments.get("pretrained_model_name_or_path", run.model.name)
        fault = f"{given} cannot be built here ({_first_line(error)})"
        return ModelFacts(str(run.model.name), None, run.model.vocab_size, run.model.context, fault=fault)
    with _quiet():
        count = flop_counter(model)

    row_flops = None if count is None else _of_rows(count)
    counted = row_flops is not None and row_flops(2) > 0
    return ModelFacts(
        name=type(getattr(model, "model", model)).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=_vocabulary(model) or run.model.vocab_size,
        context=context_length(model),
        row_flops=row_flops if counted else None,
        fault="" if counted else "its FLOPs cannot be counted",
    )


def _of_rows(count: FlopCounter) -> Callable[[int], float]:
    return lambda P: count({"input_ids": torch.zeros(1, P, dtype=torch.long, device="meta")})


def _vocabulary(model: ComposerModel) -> int | None:
    try:
        weight = getattr(input_embedding(model), "weight", None)
    except ValueError:  # it names no embedding
        return None
    return weight.shape[0] if isinstance(weight, torch.Tensor) else None


def build_model(run: RunFile) -> ComposerModel:
    """The model as llm-foundry builds it from the YAML, without weights and without GPU kernels.

    Kernels that need a GPU are replaced by plain ones, which compute the same products.

    Raises:
        ValueError: If it cannot be built.
        OSError: If its config is not in reach.
        ImportError: If a package is missing.
    """
    if run.model.name is None:
        raise ValueError("model.name is missing; give llm-foundry's name of a model, such as mpt_causal_lm.")
    from llmfoundry.models.utils import init_empty_weights
    from llmfoundry.utils.builders import build_composer_model

    arguments = _without_kernels(run.model.name, run.model.arguments)
    try:
        return build_composer_model(
            run.model.name, arguments, tokenizer=None, init_context=init_empty_weights()
        )
    except (OSError, ImportError):
        raise
    except Exception as error:  # a model's code may raise anything
        raise ValueError(f"model: {run.model.name} cannot be built: {_first_line(error)}") from error


def _without_kernels(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {key: copy.deepcopy(value) for key, value in section.items() if key != "name"}
    arguments["init_device"] = "meta"
    known = _parameters(name)
    if "loss_fn" in known:  # llm-foundry's own models, whose defaults are flash attention and a fused loss
        arguments["loss_fn"] = "torch_crossentropy"
        attention = arguments["attn_config"] = dict(arguments.get("attn_config") or {})
        attention["attn_impl"] = "torch"
        if attention.get("rope") and attention.get("rope_impl", "dail") == "dail":
            attention["rope_impl"] = "hf"
    if "pretrained" in known:
        arguments |= {"pretrained": False, "use_flash_attention_2": False}
        if "flash" in str(arguments.get("attn_implementation")):
            arguments["attn_implementation"] = "eager"
    return arguments


def _parameters(name: str) -> set[str]:
    from llmfoundry import registry

    if name not in registry.models.get_all():
        raise ValueError(
            f"model.name={name!r} is not a model that llm-foundry knows. Give one of "
            f"{', '.join(sorted(registry.models.get_all()))}."
        )
    return set(inspect.signature(registry.models.get(name)).parameters)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what llm-foundry and Composer say of a model that is about to be trained."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
