"""What llm-foundry knows by name in this environment: keys, registry entries, and their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any

import catalogue
from composer.utils import FSDPConfig
from llmfoundry import registry
from llmfoundry.data.text_data import StreamingTextDataset
from llmfoundry.models.mpt import ComposerMPTCausalLM, MPTConfig
from llmfoundry.models.utils.config_defaults import attn_config_defaults
from llmfoundry.utils.config_utils import TRAIN_CONFIG_KEYS
from streaming import StreamingDataset

from patch_algorithm.checks.names import Known
from patch_algorithm.data.corpus import BuiltinCorpus
from patch_algorithm.data.loader.dataloader import FOUNDRY_KEYS, KNOWN_KEYS

__all__ = ["REQUIRED", "TOP_LEVEL", "known_names", "registered"]

REQUIRED = (
    "model",
    "tokenizer",
    "optimizer",
    "scheduler",
    "train_loader",
    "max_duration",
    "max_seq_len",
    "global_train_batch_size",
    "device_train_microbatch_size",
)
"""Keys without which llm-foundry does not start."""

# Fields of llm-foundry's configuration that it fills in itself.
_INTERNAL = {
    "n_gpus",
    "device_train_grad_accum",
    "device_train_batch_size",
    "eval_loaders",
    "icl_tasks_str",
    "eval_gauntlet_str",
}
TOP_LEVEL = TRAIN_CONFIG_KEYS - _INTERNAL
"""Keys of the file itself."""

_NOT_ARGUMENTS = {"self", "args", "kwargs", "tokenizer", "device_batch_size", "batch_size", "params"}


def registered(kind: str) -> tuple[str, ...]:
    """Names that a registry of llm-foundry has; plugins are not imported for it.

    Args:
        kind: Such as ``algorithms`` or ``callbacks``.
    """
    own = [path[-1] for path in catalogue.REGISTRY if path[:-1] == ("llmfoundry", kind)]
    return tuple(sorted({*own, *(entry.name for entry in entry_points(group=f"llmfoundry_{kind}"))}))


def known_names(config: Mapping[str, Any]) -> Known:
    """What a configuration may hold, by the names that it uses.

    Args:
        config: The configuration, resolved. With ``code_paths`` it may use names that only the run registers.
    """
    own_code = bool(config.get("code_paths"))
    keys: dict[str, Known | None] = dict.fromkeys(TOP_LEVEL)
    keys["algorithms"] = _entries(config.get("algorithms"), "algorithm", ("algorithms",), own_code)
    callbacks = ("callbacks", "callbacks_with_config")
    keys["callbacks"] = _entries(config.get("callbacks"), "callback", callbacks, own_code)
    keys["loggers"] = _entries(config.get("loggers"), "logger", ("loggers",), own_code)
    keys["optimizer"] = _named(
        config.get("optimizer"), "optimizer", "optimizers", own_code, {"disable_grad", "param_groups"}
    )
    keys["scheduler"] = _scheduler(config.get("scheduler"), own_code)
    keys["tokenizer"] = Known({"name": None, "kwargs": None}, refuses=False, name_kind="tokenizer")
    for name in ("train_loader", "eval_loader"):
        keys[name] = _loader(config.get(name), own_code)
    keys["model"] = _model(config.get("model"), own_code)
    keys["fsdp_config"] = Known(dict.fromkeys(FSDPConfig.__annotations__), refuses=False)
    corpus = Known(dict.fromkeys(field.name for field in fields(BuiltinCorpus)))
    variables = config.get("variables")
    own = dict.fromkeys(variables) if isinstance(variables, Mapping) else {}
    keys["variables"] = Known({**own, "builtin_corpus": corpus})
    return Known(keys)


def _entries(section: Any, kind: str, registries: tuple[str, ...], own_code: bool) -> Known | None:
    """A section whose keys are names in registries, each with arguments below it."""
    if own_code:
        return None
    names = {name: which for which in registries for name in registered(which)}
    used = section if isinstance(section, Mapping) else {}
    keys = {
        name: _arguments(_find(names[name], name)) if name in used else None
        for name in names
    }  # fmt: skip
    return Known(keys, kind=kind)


def _named(
    section: Any, kind: str, which: str, own_code: bool, extra: set[str] | None = None
) -> Known | None:
    """A section with ``name`` and the arguments of what is registered under it."""
    name = section.get("name") if isinstance(section, Mapping) else None
    names = registered(which)
    known = _arguments(_find(which, name)) if name in names else None
    if own_code and name not in names:
        return None
    keys = {**(known.keys if known else {}), **dict.fromkeys({"name", *(extra or ())})}
    if known is None:  # unknown, or takes anything
        keys |= dict.fromkeys(section) if isinstance(section, Mapping) else {}
    return Known(keys, name_kind=kind, names=names)


def _scheduler(section: Any, own_code: bool) -> Known | None:
    known = _named(section, "scheduler", "schedulers", own_code)
    if known is None or not isinstance(section, Mapping) or section.get("name") != "per_stage":
        return known
    inside: dict[str, Known | None] = {"scheduler": _scheduler(section.get("scheduler"), own_code)}
    given = section.get("schedulers")
    # A list has one description; the names in it may differ, so that each brings its own arguments.
    each = [_scheduler(entry, own_code) for entry in given] if isinstance(given, list) else []
    merged = {key: value for entry in each if entry for key, value in entry.keys.items()}
    inside["schedulers"] = (
        Known(merged, name_kind="scheduler", names=registered("schedulers")) if each else None
    )
    return Known({**known.keys, **inside}, name_kind=known.name_kind, names=known.names)


def _loader(section: Any, own_code: bool) -> Known | None:
    if isinstance(section, list):
        # One description for all of the list: what any of them takes.
        each = [known for entry in section if (known := _loader(entry, own_code)) is not None]
        if len(each) < len(section) or not each:
            return None
        keys = {key: value for known in each for key, value in known.keys.items()}
        return Known({**keys, "label": None}, name_kind="data loader", names=registered("dataloaders"))
    known = _named(section, "data loader", "dataloaders", own_code)
    if known is None:
        return None
    name = section.get("name") if isinstance(section, Mapping) else None
    dataset = None
    if name in ("text", "pile"):
        text = _names_of(StreamingTextDataset) | _names_of(StreamingDataset) | FOUNDRY_KEYS
        taken = KNOWN_KEYS if name == "pile" else text
        dataset = Known(dict.fromkeys(taken), refuses=name == "pile")
    return Known({**known.keys, "dataset": dataset}, name_kind=known.name_kind, names=known.names)


def _model(section: Any, own_code: bool) -> Known | None:
    name = section.get("name") if isinstance(section, Mapping) else None
    extra = {"init_device", "master_weights_dtype"}
    if name != "mpt_causal_lm":
        return _named(section, "model", "models", own_code, extra)
    # MPT's config takes any key without a word.
    keys: dict[str, Known | None] = dict.fromkeys(
        _names_of(MPTConfig) | _names_of(ComposerMPTCausalLM) | extra | {"name"}
    )
    keys["attn_config"] = Known(dict.fromkeys((*attn_config_defaults, "kv_n_heads", "kv_dim")), refuses=False)
    return Known(keys, refuses=False, name_kind="model", names=registered("models"))


def _find(which: str, name: str | None) -> Callable[..., Any] | None:
    try:
        return None if name is None else getattr(registry, which).get(name)
    except (catalogue.RegistryError, ImportError, AttributeError):
        return None


def _arguments(builder: Callable[..., Any] | None) -> Known | None:
    """The arguments of a builder; ``None`` where it takes any, or there is none."""
    if builder is None:
        return None
    parameters = inspect.signature(builder).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return Known(dict.fromkeys(_names_of(builder)))


def _names_of(builder: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(builder).parameters) - _NOT_ARGUMENTS
