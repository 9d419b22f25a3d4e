"""Misspelt keys and names of a configuration."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from patch_algorithm.checks.finding import Finding, finding

__all__ = ["Known", "check_names", "nearest"]

_NEAR = 0.6
_VERY_NEAR = 0.75


@dataclass(frozen=True)
class Known:
    """What a mapping of the configuration may hold.

    Attributes:
        keys: Known keys, and what is known of their values; ``None`` where anything goes.
        refuses: Whether a key that is not known ends the run; otherwise it is silently ignored.
        kind: What the keys are names of, such as ``algorithm``; empty for keys of a section.
        name_kind: What the value of the key ``name`` is a name of; such a section must have that key.
        names: Names that ``name`` may have; ``None`` where that is not known.
    """

    keys: Mapping[str, Known | None] = field(default_factory=dict)
    refuses: bool = True
    kind: str = ""
    name_kind: str = ""
    names: tuple[str, ...] | None = None


def check_names(config: Mapping[str, Any], known: Known, path: str = "") -> list[Finding]:
    """Checks every key of a configuration.

    Args:
        config: The configuration, or a part of it.
        known: What it may hold.
        path: The full key of the part.
    """
    found: list[Finding] = []
    for key, value in config.items():
        full = f"{path}.{key}" if path else str(key)
        if key not in known.keys:
            found += _unknown(str(key), full, known, config)
            continue
        below = known.keys[key]
        if below is None:
            continue
        parts = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for index, part in parts:
            if isinstance(part, Mapping):
                found += check_names(part, below, full if index is None else f"{full}[{index}]")
    name = config.get("name")
    if known.name_kind and name is None:
        return [_missing_name(path, known.name_kind, config, found), *found]
    if known.names is not None and isinstance(name, str) and name not in known.names:
        found.append(_unknown_name(f"{path}.name", name, known.name_kind, known.names))
    return found


def nearest(name: str, known: Iterable[str], near: float = _NEAR) -> str | None:
    """The known name that ``name`` looks like most; ``None`` if it looks like none."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=near)
    return close[0] if close else None


def _unknown(key: str, full: str, known: Known, config: Mapping[str, Any]) -> list[Finding]:
    if known.kind:
        return [_unknown_name(full, key, known.kind, tuple(known.keys))]
    # A key that is there already is not what another one was meant to be.
    candidates = [name for name in known.keys if name not in config]
    if not known.refuses:
        meant = nearest(key, candidates, _VERY_NEAR) or nearest(key, known.keys, _VERY_NEAR)
        if meant is None:
            return []
        return [
            finding(
                "ignored-key",
                f"{full} is not a known key here. Did you mean {meant}?",
                "llm-foundry accepts it silently, and it has no effect.",
                f"Rename it to {_sibling(full, key, meant)}, or remove it.",
            )
        ]
    meant = nearest(key, candidates) or nearest(key, known.keys)
    guess = f" Did you mean {meant}?" if meant else ""
    fix = f"Rename it to {_sibling(full, key, meant)}." if meant else "Remove it"
    if full == key and not meant:
        fix = "Remove it, or move it below `variables` if it is a variable of your own."
    elif not meant:
        fix = f"Known keys: {', '.join(sorted(known.keys))}."
    return [finding("unknown-key", f"{full} is not a known key.{guess}", "llm-foundry refuses it.", fix)]


def _missing_name(path: str, kind: str, config: Mapping[str, Any], found: list[Finding]) -> Finding:
    full = f"{path}.name"
    # A key that looks like a misspelt `name` is shown here, and not once more as an unknown one.
    meant = nearest("name", (key for key in map(str, config) if key != "name"), _VERY_NEAR)
    if meant is not None:
        found[:] = [one for one in found if not one.found.startswith(f"{path}.{meant} ")]
    guess = "" if meant is None else f" Did you mean {path}.{meant}?"
    fix = f"Set {full}." if meant is None else f"Rename {path}.{meant} to {full}."
    return finding(
        "missing-key",
        f"{full} is missing: the name of the {kind}.{guess}",
        "llm-foundry does not start without it.",
        fix,
    )


def _sibling(full: str, key: str, meant: str) -> str:
    return f"{full[: len(full) - len(key)]}{meant}"


def _unknown_name(full: str, name: str, kind: str, names: tuple[str, ...]) -> Finding:
    meant = nearest(name, names)
    guess = f" Did you mean {meant}?" if meant else ""
    return finding(
        "unknown-name",
        f"{full}: no {kind} is registered as {name!r}.{guess}",
        "llm-foundry builds it by its name in a registry, which packages and code_paths add to.",
        f"Use {meant}." if meant else f"Known: {', '.join(sorted(names))}.",
    )
