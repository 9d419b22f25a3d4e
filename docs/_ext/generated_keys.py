"""The keys of what is registered, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from importlib import import_module
from typing import Any, NamedTuple


class Key(NamedTuple):
    """One argument, as a page shows it."""

    name: str
    kind: str
    default: str
    text: str


# What llm-foundry itself passes on, and no YAML says.
_NOT_IN_YAML = {"params", "self", "tokenizer", "device_batch_size"}


def load(path: str) -> Any:
    """The object at ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def read_keys(home: Any) -> list[Key]:
    """The arguments of a class or function, with what its docstring says of them.

    Raises:
        ValueError: If the docstring leaves one out.
    """
    described = arguments_of(inspect.getdoc(home) or "")
    found = []
    for name, parameter in inspect.signature(home).parameters.items():
        if name in _NOT_IN_YAML:
            continue
        if name not in described:
            raise ValueError(f"The docstring of {home.__name__} does not describe {name}.")
        kind, text = described[name]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found.append(Key(f"**{name}", "", "", text))
            continue
        required = parameter.default is inspect.Parameter.empty
        default = "required" if required else f"default `{parameter.default!r}`"
        found.append(Key(name, kind or _annotation(parameter), default, text))
    return found


def keys(path: str) -> str:
    """A definition list of the arguments of ``module:name``."""
    home = load(path)
    prefix = path.partition(":")[2].lower()
    return "\n\n".join(_entry(key, prefix) for key in read_keys(home))


def pile_keys() -> str:
    """The keys of ``dataset`` that the loader ``pile`` passes on, and their defaults where they have one."""
    from llmfoundry.data.text_data import StreamingTextDataset
    from streaming import StreamingDataset

    from patch_algorithm.data.loader.dataloader import KNOWN_KEYS

    kinds = (StreamingDataset, StreamingTextDataset)
    defaults = {p.name: p.default for kind in kinds for p in inspect.signature(kind).parameters.values()}
    ours = {"components", "long_rows", "verify", "max_seq_len"}
    shown = []
    for name in sorted(KNOWN_KEYS - ours):
        default = defaults.get(name, inspect.Parameter.empty)
        shown.append(f"`{name}`" + ("" if default is inspect.Parameter.empty else f" (`{default!r}`)"))
    return ", ".join(shown) + "."


def arguments_of(docstring: str) -> dict[str, tuple[str, str]]:
    """Type and text of each argument in a Google docstring, as Markdown."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", docstring + "\n", re.MULTILINE)
    found: dict[str, tuple[str, str]] = {}
    if section is None:
        return found
    entries = re.split(r"^    (?=\S)", section[1], flags=re.MULTILINE)[1:]
    for entry in entries:
        head = re.match(r"\**(\w+)(?: \((.+?)\))?: ", entry)
        if head is None:
            raise ValueError(f"This entry of a docstring cannot be read: {entry!r}")
        first, _, rest = entry[head.end() :].partition("\n")
        text = f"{first}\n{textwrap.dedent(rest)}".strip()
        text = re.sub(r"\s*Default:\s+``[^`]+``\.$", "", text)
        kind = re.sub(r", optional$", "", head[2] or "")
        found[head[1]] = (kind, as_markdown(text))
    return found


def as_markdown(text: str) -> str:
    """The markup of docstrings as Markdown."""
    text = re.sub(r":\w+:`~?\.?([^`<]+)`", lambda role: f"`{role[1].lstrip('.')}`", text)
    return text.replace("``", "`")


def _annotation(parameter: inspect.Parameter) -> str:
    return "" if parameter.annotation is inspect.Parameter.empty else str(parameter.annotation)


def _entry(key: Key, prefix: str) -> str:
    about = ", ".join(part for part in (_code(key.kind), key.default) if part)
    term = f"[`{key.name}`]{{#{prefix}-{key.name.strip('*')}}}" + (f" ({about})" if about else "")
    return f"{term}\n: {textwrap.indent(key.text, '  ').strip()}"


def _code(kind: str) -> str:
    return f"`{kind}`" if kind else ""
