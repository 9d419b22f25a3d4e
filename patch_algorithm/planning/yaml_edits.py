"""A YAML that is changed key by key, with its comments and its order kept, and a reason for every change."""

from __future__ import annotations

import difflib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.tokens import CommentToken
from ruamel.yaml.util import load_yaml_guess_indent

__all__ = ["Document", "Edit", "NumberRepresenter", "written_number"]

_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")
_NO_WRAPPING = 10_000
_DIGITS = 12

Path = tuple[str, ...]


@dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
        path: The keys down to the value.
        reason: Why it was made.
        removed: Whether the key was taken out.
    """

    path: Path
    reason: str
    removed: bool = False


def written_number(value: float) -> str:
    """A number as a person writes it, and as every reader of YAML takes it for one.

    Products are rounded to 12 digits; ``6e-05`` without a point is text to PyYAML.

    Examples:
        >>> written_number(0.1 * 3e-4), written_number(0.05), written_number(2.0)
        ('3.0e-05', '0.05', '2.0')
    """
    if not math.isfinite(value):
        return {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
    text = repr(float(f"{value:.{_DIGITS}g}"))
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa if '.' in mantissa else f'{mantissa}.0'}{e}{exponent}"


class NumberRepresenter(RoundTripRepresenter):
    """Writes new numbers by :func:`written_number`; those of the file stay as they were."""

    def represent_number(self, value: float) -> Any:
        """The node of a number."""
        return self.represent_scalar("tag:yaml.org,2002:float", written_number(value))


NumberRepresenter.add_representer(float, NumberRepresenter.represent_number)


class Document:
    """The text of a YAML, and changes to it.

    Args:
        text: The YAML; a mapping.

    Raises:
        ValueError: If it cannot be read.
    """

    def __init__(self, text: str) -> None:
        self._before = text
        try:
            _, indent, offset = load_yaml_guess_indent(text)
        except YAMLError as error:
            raise ValueError(f"the YAML cannot be read: {error}") from error
        self._yaml = YAML()
        self._yaml.Representer = NumberRepresenter
        self._yaml.preserve_quotes = True
        self._yaml.width = _NO_WRAPPING
        self._yaml.indent(mapping=2, sequence=indent or 2, offset=offset or 0)
        self._root = self._yaml.load(text)
        if not isinstance(self._root, CommentedMap):
            raise ValueError("the YAML is not a mapping of keys to values.")
        self.edits: list[Edit] = []
        self._made: list[CommentedMap] = []

    def get(self, path: Path) -> Any:
        """A value as it is written, interpolations unresolved; ``None`` where there is none."""
        node: Any = self._root
        for key in path:
            node = node.get(key) if isinstance(node, CommentedMap) else None
        return node

    def set(self, path: Path, value: Any, reason: str, before: str | None = None) -> None:
        """Sets a value, unless it is there already; mappings on the way are made.

        Args:
            path: The keys down to it.
            value: The value.
            reason: Why.
            before: Where the first key is new, the top-level key in front of which it is put.
        """
        if self.get(path) == value and self._holds(path):
            return
        *above, last = path
        node = self._root
        for depth, key in enumerate(above):
            if not isinstance(node.get(key), CommentedMap):
                self._put(node, key, CommentedMap(), None if depth else before)
            node = node[key]
        if value == {}:
            value = CommentedMap()
            value.fa.set_flow_style()
        self._put(node, last, value, None if above else before)
        self.edits.append(Edit(path, reason))

    def remove(self, path: Path, reason: str) -> None:
        """Takes a key out, if it is there."""
        if not self._holds(path):
            return
        *above, key = path
        node = self.get(tuple(above))
        keys = list(node)
        at = keys.index(key)
        token = node.ca.items.pop(key, None)
        del node[key]
        self.edits.append(Edit(path, reason, removed=True))
        # What stands below the line belongs to the file, and not to the key.
        below = "" if token is None or token[2] is None else token[2].value.partition("\n")[2]
        if below and at:
            _append_comment(node, keys[at - 1], below)
        elif below.strip() and len(keys) > 1:
            text = "\n".join(line.lstrip("# ") for line in below.strip().splitlines())
            node.yaml_set_comment_before_after_key(keys[1], before=text)

    def replace_text(self, old: str, new: str, reason: str) -> None:
        """Replaces a piece of every string that has it, such as an interpolation."""
        for path in list(_paths(self._root)):
            value = self.get(path)
            if isinstance(value, str) and old in value:
                self.set(path, value.replace(old, new), reason)

    def _holds(self, path: Path) -> bool:
        *above, key = path
        node = self.get(tuple(above))
        return isinstance(node, CommentedMap) and key in node

    def _put(self, node: CommentedMap, key: str, value: Any, before: str | None) -> None:
        if isinstance(value, CommentedMap):
            self._made.append(value)
        if key in node:
            node[key] = value
        elif before in node:
            node.insert(list(node).index(before), key, value)
        elif node and node is not self._root and not any(node is made for made in self._made):
            # Blank lines and comments behind a section belong to its last key: nothing is put behind it.
            node.insert(len(node) - 1, key, value)
        else:
            node[key] = value

    @property
    def text(self) -> str:
        """The YAML with all changes."""
        out = io.StringIO()
        self._yaml.dump(self._root, out)
        return out.getvalue()

    def diff(self, before: str, after: str) -> str:
        """The changes as a unified diff, each line with its reason behind it.

        Args:
            before: The name of the file that was read.
            after: The name of the one that is written.
        """
        text = self.text
        reasons = _lines(text, [edit for edit in self.edits if not edit.removed])
        removed = _lines(self._before, [edit for edit in self.edits if edit.removed])
        lines = difflib.unified_diff(
            self._before.splitlines(), text.splitlines(), before, after, lineterm="", n=2
        )
        return "\n".join(_annotated(lines, reasons, removed))


def _append_comment(node: CommentedMap, key: str, text: str) -> None:
    """Puts lines behind a key, and behind everything below it."""
    while isinstance(node[key], CommentedMap) and node[key]:
        node = node[key]
        key = list(node)[-1]
    token = node.ca.items.get(key)
    if token is not None and token[2] is not None:
        token[2].value += text
    else:
        node.ca.items[key] = [None, None, CommentToken(f"\n{text}", CommentMark(0), None), None]


def _paths(node: CommentedMap, above: Path = ()) -> Iterator[Path]:
    """The paths of all values that are no mappings."""
    for key, value in node.items():
        if isinstance(value, CommentedMap):
            yield from _paths(value, (*above, key))
        else:
            yield (*above, key)


def _lines(text: str, edits: list[Edit]) -> dict[int, str]:
    """Reasons by the number of the line, from 0, that a key is on."""
    root = YAML().load(text)
    found: dict[int, str] = {}
    for edit in edits:
        node = root
        for depth, key in enumerate(edit.path):
            if not isinstance(node, CommentedMap) or key not in node:
                break
            # A section that is new is made for the first of its keys.
            line = node.lc.key(key)[0]
            if depth == len(edit.path) - 1:
                found[line] = edit.reason
            node = node[key]
    return found


def _annotated(lines: Iterator[str], added: dict[int, str], removed: dict[int, str]) -> Iterator[str]:
    old = new = 0
    for line in lines:
        if (hunk := _HUNK.match(line)) is not None:
            old, new = int(hunk[1]) - 1, int(hunk[2]) - 1
        elif line.startswith(("---", "+++")):
            pass
        elif line.startswith("+"):
            yield f"{line}  # <- {added[new]}" if new in added else line
            new += 1
            continue
        elif line.startswith("-"):
            yield f"{line}  # <- {removed[old]}" if old in removed else line
            old += 1
            continue
        else:
            old, new = old + 1, new + 1
        yield line
