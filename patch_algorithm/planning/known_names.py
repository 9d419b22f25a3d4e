"""What llm-foundry knows by name in this environment: keys, registry entries, and their arguments.

They are read from the installed source (:mod:`.source`); llm-foundry is imported only for what that leaves
open.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from patch_algorithm.checks.names import Known
from patch_algorithm.data.corpus import BuiltinCorpus
from patch_algorithm.data.loader.keys import FOUNDRY_KEYS, known_keys
from patch_algorithm.planning.source import (
    Arguments,
    SourceUnclearError,
    arguments_of,
    definition_of,
    fields_of,
    keys_of,
    registered_in,
)

__all__ = ["REQUIRED", "known_names", "load", "registered", "registered_by_import", "top_level"]

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
_TEXT_DATASET = ("llmfoundry.data.text_data", "StreamingTextDataset")
_STREAMING_DATASET = ("streaming.base.dataset", "StreamingDataset")
_MPT_CONFIG = ("llmfoundry.models.mpt.configuration_mpt", "MPTConfig")
_MPT_MODEL = ("llmfoundry.models.mpt.modeling_mpt", "ComposerMPTCausalLM")
_MPT_ATTENTION = ("llmfoundry.models.utils.config_defaults", "attn_config_defaults")
_NOT_ARGUMENTS = {"self", "args", "kwargs", "tokenizer", "device_batch_size", "batch_size", "params"}


def top_level() -> frozenset[str]:
    """Keys of the file itself."""
    return _fields("llmfoundry.utils.config_utils", "TrainConfig") - _INTERNAL


def registered(kind: str) -> tuple[str, ...]:
    """Names that a registry of llm-foundry has; plugins are not imported for it.

    Args:
        kind: Such as ``algorithms`` or ``callbacks``.
    """
    try:
        own: Iterable[str] = registered_in("llmfoundry", kind)
    except SourceUnclearError:
        return registered_by_import(kind)
    return tuple(sorted({*own, *_plugins(kind)}))


def registered_by_import(kind: str) -> tuple[str, ...]:
    """As :func:`registered`, by importing llm-foundry and asking it."""
    import_module("llmfoundry.registry")
    entries = import_module("catalogue").REGISTRY
    own = [path[-1] for path in entries if path[:-1] == ("llmfoundry", kind)]
    return tuple(sorted({*own, *_plugins(kind)}))


def load(kind: str, name: str) -> Callable[..., Any]:
    """What is registered under a name; only the module that defines it is imported.

    Raises:
        KeyError: If nothing is.
        ImportError: If its module cannot be imported.
    """
    plugin = _plugins(kind).get(name)
    if plugin is not None:
        return plugin.load()
    try:
        module, attribute = definition_of(*registered_in("llmfoundry", kind)[name])
    except SourceUnclearError:
        return getattr(import_module("llmfoundry.registry"), kind).get(name)
    return getattr(import_module(module), attribute)


def _plugins(kind: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"llmfoundry_{kind}")}


def known_names(config: Mapping[str, Any]) -> Known:
    """What a configuration may hold, by the names that it uses.

    Args:
        config: The configuration, resolved. With ``code_paths`` it may use names that only the run registers.
    """
    own_code = bool(config.get("code_paths"))
    keys: dict[str, Known | None] = dict.fromkeys(top_level())
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
    keys["fsdp_config"] = Known(
        dict.fromkeys(_fields("composer.utils.parallelism", "FSDPConfig")), refuses=False
    )
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
        name: _arguments(names[name], name) if name in used else None
        for name in names
    }  # fmt: skip
    return Known(keys, kind=kind)


def _named(
    section: Any, kind: str, which: str, own_code: bool, extra: set[str] | None = None
) -> Known | None:
    """A section with ``name`` and the arguments of what is registered under it."""
    name = section.get("name") if isinstance(section, Mapping) else None
    names = registered(which)
    known = _arguments(which, name) if name in names else None
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
        both = _names(*_TEXT_DATASET) | _names(*_STREAMING_DATASET)
        taken = known_keys(both) if name == "pile" else (both - _NOT_ARGUMENTS) | FOUNDRY_KEYS
        dataset = Known(dict.fromkeys(taken), refuses=name == "pile")
    return Known({**known.keys, "dataset": dataset}, name_kind=known.name_kind, names=known.names)


def _model(section: Any, own_code: bool) -> Known | None:
    name = section.get("name") if isinstance(section, Mapping) else None
    extra = {"init_device", "master_weights_dtype"}
    if name != "mpt_causal_lm":
        return _named(section, "model", "models", own_code, extra)
    # MPT's config takes any key without a word.
    mpt = (_names(*_MPT_CONFIG) | _names(*_MPT_MODEL)) - _NOT_ARGUMENTS
    keys: dict[str, Known | None] = dict.fromkeys(mpt | extra | {"name"})
    attention = (*_dictionary_keys(*_MPT_ATTENTION), "kv_n_heads", "kv_dim")
    keys["attn_config"] = Known(dict.fromkeys(attention), refuses=False)
    return Known(keys, refuses=False, name_kind="model", names=registered("models"))


def _arguments(kind: str, name: str | None) -> Known | None:
    """The arguments of what is registered; ``None`` where it takes any, or cannot be had."""
    try:
        found = None if name is None else _of_entry(kind, name)
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    if found is None or found.takes_any:
        return None
    return Known(dict.fromkeys(found.names - _NOT_ARGUMENTS))


def _of_entry(kind: str, name: str) -> Arguments:
    # A plugin takes the place of an entry of the same name.
    plugin = _plugins(kind).get(name)
    try:
        place = plugin.value.split(":", 1) if plugin else registered_in("llmfoundry", kind)[name]
        return arguments_of(*place)
    except SourceUnclearError:
        return _inspected(load(kind, name))


def _inspected(builder: Any) -> Arguments:
    parameters = inspect.signature(builder).parameters
    takes_any = any(one.kind == one.VAR_KEYWORD for one in parameters.values())
    return Arguments(frozenset(parameters), takes_any)


def _names(module: str, name: str) -> frozenset[str]:
    try:
        return arguments_of(module, name).names
    except SourceUnclearError:
        return _inspected(getattr(import_module(module), name)).names


@lru_cache
def _fields(module: str, name: str) -> frozenset[str]:
    """The fields of a dataclass."""
    try:
        return fields_of(module, name)
    except SourceUnclearError:
        return frozenset(field.name for field in fields(getattr(import_module(module), name)))


def _dictionary_keys(module: str, name: str) -> tuple[str, ...]:
    try:
        return keys_of(module, name)
    except SourceUnclearError:
        return tuple(getattr(import_module(module), name))
