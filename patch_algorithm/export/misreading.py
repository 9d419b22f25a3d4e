"""Exports with code of their own that transformers, not allowed to run it, loads as another model.

transformers looks up ``model_type`` among its own architectures. llm-foundry's MPT says ``mpt``, which is
there, too: the MPT of 2023, with ALiBi and without biases. So a load without ``trust_remote_code=True``
silently gives a model that lacks weights and has other positions. With a ``model_type`` that transformers
does not know, such a load is an error that asks for ``trust_remote_code=True``.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass

import torch
import transformers
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from patch_algorithm.checkpoints.export_folder import CONFIG, ExportFolder
from patch_algorithm.checkpoints.loading import LOADING_ERRORS, load_as, logits_of, parameters
from patch_algorithm.common.files import write_atomically

__all__ = ["Misreading", "find_misreading", "rename_model_type"]

_PREFIX = "llmfoundry_"


@dataclass(frozen=True)
class Misreading:
    """What transformers makes of an export without its code.

    Attributes:
        class_name: The class of transformers that it loads.
        parameters: Parameters of that model.
        unused: Weights of the export that it leaves out.
        largest_difference: Of the logits.
    """

    class_name: str
    parameters: int
    unused: int
    largest_difference: float


def find_misreading(
    export: ExportFolder, model: PreTrainedModel, ids_BT: torch.Tensor, tolerance: float
) -> Misreading | None:
    """Loads an export as transformers does without ``trust_remote_code``.

    Args:
        export: The folder.
        model: The export, loaded with its own code.
        ids_BT: Token ids ``[B, T]``.
        tolerance: Largest difference of two logits that are equal, as a share of the largest logit.

    Returns:
        What is loaded; ``None`` where that is the model itself, or an error.
    """
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(export.model_type)
    if not export.own_code or name is None:
        return None
    try:
        # By its class: in a process in which llm-foundry has exported, transformers' own lookup is changed.
        loaded = load_as(getattr(transformers, name), export)
        given = logits_of(loaded.model, ids_BT)
    except LOADING_ERRORS:
        return None  # which nobody can miss
    expected = logits_of(model, ids_BT)
    difference = float((given - expected).abs().max())
    number = parameters(loaded.model)
    if number == parameters(model) and difference <= tolerance * float(expected.abs().max()):
        return None
    return Misreading(name, number, len(loaded.unused), difference)


def rename_model_type(export: ExportFolder) -> list[str]:
    """Gives an export a ``model_type`` that transformers does not have, in its config and in its code.

    Returns:
        What was changed, one line for each file.

    Raises:
        ValueError: If the code's own ``model_type`` is not where it is expected.
    """
    old, new = export.model_type, f"{_PREFIX}{export.model_type}"
    module, _, class_name = str(export.config["auto_map"]["AutoConfig"]).partition(".")
    code = export.path / f"{module}.py"
    source = code.read_text("utf-8")
    renamed = _with_model_type(source, class_name, old, new)
    if renamed is None:
        raise ValueError(f"{code} has no class {class_name} with model_type = {old!r}; nothing was changed.")
    # First the code: the config that names the old type goes with either.
    write_atomically(code, renamed)
    config = {**export.config, "model_type": new}
    write_atomically(export.path / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return [f"{name}: model_type {old!r} is now {new!r}" for name in (code.name, CONFIG)]


def _with_model_type(source: str, class_name: str, old: str, new: str) -> str | None:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef) or node.name != class_name:
            continue
        for line in node.body:
            if isinstance(line, ast.Assign) and ast.unparse(line) == f"model_type = {old!r}":
                lines = source.splitlines(keepends=True)
                first, last = line.lineno - 1, line.end_lineno or line.lineno
                indent, end = " " * line.col_offset, "\n"
                lines[first:last] = [f"{indent}model_type = {new!r}{end}"]
                return "".join(lines)
    return None
