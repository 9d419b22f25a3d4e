"""Where a document has its text and the name of its component."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["COMPONENT_FIELDS", "component_fields", "component_of", "look_up", "parse_json", "usable_label"]

COMPONENT_FIELDS = ("meta.pile_set_name", "meta.redpajama_set_name", "source")
"""Where the Pile, SlimPajama and Dolma name a document's component; the first that is there counts."""

# Python's parser gives up at a depth that depends on who calls it, and so on the number of workers.
_DEEPEST_JSON = 400
_BRACKETS_OR_STRING = re.compile(rb'[\[{]|[\]}]|"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# Other data has an address or a title in `source`, which would make every document its own component.
_LONGEST_SOURCE = 64


def look_up(document: Mapping[str, Any], field: str) -> Any:
    """The value of a field, of which a dot may lead into an object; ``None`` where there is none."""
    if field in document:
        return document[field]
    value: Any = document
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def component_fields(asked: str | None) -> tuple[str, ...]:
    """The fields that may name the component: the one that is asked for, or those that are known."""
    return COMPONENT_FIELDS if asked is None else (asked,)


def component_of(document: Mapping[str, Any], asked: str | None = None) -> str | None:
    """The component of a document, if it names one."""
    for field in component_fields(asked):
        if usable_label(label := look_up(document, field), field, asked):
            return label
    return None


def usable_label(label: object, field: str, asked: str | None) -> bool:
    """Whether a value names a component: a string, and where ``source`` was not asked for a short one."""
    if not isinstance(label, str) or not label.strip():
        return False
    return asked is not None or field != "source" or (len(label) <= _LONGEST_SOURCE and "/" not in label)


def parse_json(line: bytes) -> Any:
    """Parses a line, with the same result whatever process it is in.

    Raises:
        UnicodeDecodeError: If it is not UTF-8.
        ValueError: If it is not JSON, or nested deeper than 400 levels.
    """
    if line.count(b"[") + line.count(b"{") > _DEEPEST_JSON and _depth(line) > _DEEPEST_JSON:
        raise ValueError(f"nested deeper than {_DEEPEST_JSON} levels")
    return json.loads(line.decode())


def _depth(line: bytes) -> int:
    depth = deepest = 0
    for found in _BRACKETS_OR_STRING.finditer(line):
        first = found[0][:1]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest
