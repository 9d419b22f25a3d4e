"""A run's YAML with its overrides, and single values of it, with errors that name the full key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from composer.core import Time, TimeUnit
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from patch_algorithm.common.arguments import is_whole

_NOT_FOUND = re.compile(r"Interpolation key '([^']+)' not found")

__all__ = ["Values", "read_config", "resolved", "value_of"]


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
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{yaml_path} with its overrides cannot be read: {error}") from error
    except TypeError as error:  # OmegaConf, where the path of an override leads into a list
        raise ValueError(
            f"the overrides do not fit into {yaml_path}: {error}. A list is overridden as a whole, key=[...]."
        ) from error
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"{yaml_path} holds a list; a configuration is a mapping of keys to values.")
    return cfg


def value_of(cfg: DictConfig, key: str) -> Any:
    """The value of a dotted key in plain Python; ``None`` where the configuration has none.

    Raises:
        ValueError: If it cannot be resolved.
    """
    try:
        value = OmegaConf.select(cfg, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ValueError(f"{key} cannot be resolved: {error}") from error


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration in plain Python, its interpolations resolved.

    Raises:
        ValueError: If one cannot be resolved; it names the full key.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the configuration"
        text = str(error).splitlines()[0]
        if isinstance(error, InterpolationKeyError):
            text = _not_found(text, cfg)
        raise ValueError(f"{key} cannot be resolved: {text}") from error
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def _not_found(text: str, cfg: DictConfig) -> str:
    """What a reference asks for in vain, and which key of the file is most like it."""
    asked = _NOT_FOUND.search(text)
    if asked is None:
        return text
    keys = list(_dotted_keys(OmegaConf.to_container(cfg, resolve=False)))
    close = difflib.get_close_matches(asked[1], keys, n=1)
    guess = f"; it has {close[0]}. Is one of the two misspelt?" if close else "."
    return f"${{{asked[1]}}} refers to a key that the file does not have{guess}"


def _dotted_keys(node: Any, above: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        full = f"{above}{key}"
        yield full
        yield from _dotted_keys(value, f"{full}.")


class Values:
    """A mapping of the configuration, whose values are read with a type; ``None`` where there is none.

    Args:
        mapping: The values, resolved.
        path: The mapping's full key, for messages; empty for the file itself.
    """

    def __init__(self, mapping: Mapping[str, Any], path: str = "") -> None:
        self.mapping = mapping
        self.path = path

    def key(self, name: str) -> str:
        """The full key of a value."""
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Any:
        """The value as it is."""
        return self.mapping.get(name)

    def section(self, name: str) -> Values:
        """A mapping below this one; empty where there is none.

        Raises:
            ValueError: If the value is something else.
        """
        found = self.get(name)
        if found is not None and not isinstance(found, Mapping):
            raise ValueError(f"{self.key(name)} is {found!r}; expected a mapping of keys to values.")
        return Values(found or {}, self.key(name))

    def text(self, name: str) -> str | None:
        """A string.

        Raises:
            ValueError: If the value is something else.
        """
        found = self.get(name)
        if found is not None and not isinstance(found, str):
            raise ValueError(f"{self.key(name)} is {found!r}; expected a string.")
        return found

    def flag(self, name: str, default: bool) -> bool:
        """True or false.

        Raises:
            ValueError: If the value is something else.
        """
        found = self.get(name)
        if found is not None and not isinstance(found, bool):
            raise ValueError(f"{self.key(name)} is {found!r}; expected true or false.")
        return default if found is None else found

    def whole(self, name: str, least: int = 1) -> int | None:
        """A whole number of at least ``least``; YAML's ``8e3`` is one, too.

        Raises:
            ValueError: If the value is something else.
        """
        found = self.get(name)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if found is None:
            return None
        if not is_whole(found) or found < least:
            raise ValueError(f"{self.key(name)} is {found!r}; expected a whole number of at least {least}.")
        return found

    def time(self, name: str, default: str | int | None = None) -> Time[Any] | None:
        """A Composer time; a number without a unit counts epochs.

        Raises:
            ValueError: If the value cannot be read as a time.
        """
        found = self.get(name)
        found = default if found is None else found
        if found is None:
            return None
        try:
            if isinstance(found, str) or is_whole(found):
                return Time.from_input(found, TimeUnit.EPOCH)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{self.key(name)}={found!r} cannot be read as a time: {error}") from error
        raise ValueError(
            f"{self.key(name)}={found!r} cannot be read as a time; expected one such as '1000ba', '1ep' or "
            "'26_000_000_000tok'."
        )
