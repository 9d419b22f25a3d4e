"""Findings by id and errors by message, read from the source without running it."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import patch_algorithm
from patch_algorithm.common.command_line import anchor_of_module

ROOT = Path(patch_algorithm.__file__).parent
HOLE = "…"
"""What stands for a value in a message."""

ROOMS = {
    "algorithm": "Training: arguments, rows and the switch",
    "stages": "Stages and times",
    "model_access": "Models",
    "patching": "Batches and rows as tensors",
    "loss": "The loss",
    "optim": "Learning rate and optimizer",
    "monitoring": "Monitors and histories",
    "data": "Data",
    "planning": "`patch-level plan`, `init` and `doctor`",
    "recipes": "`patch-level recipe`",
    "checkpoints": "Checkpoints",
    "export": "`patch-level check-export`",
    "evaluation": "`patch-level eval`",
    "reporting": "`patch-level report`",
    "checks": "Checks",
    "common": "Arguments of several parts",
    "": "`train.py` and preparing a run",
}
"""Headings of the page, by room of the package."""

PASSED_ON = "This part passes on the message of what it reads or calls."

_NOT_SHOWN = {"AttributeError", "typer.Exit", "NotImplementedError", "KeyError", "StopIteration"}
"""Raised for programs, or without a message."""

_RAISED = {"ValueError", "OSError", "RuntimeError", "TypeError", "FileNotFoundError"}


class Message(NamedTuple):
    """One error message of the source: its text with holes, its type, and where it is."""

    text: str
    kind: str
    module: str


def source_files() -> list[Path]:
    """Every module of the package, in order."""
    return sorted(path for path in ROOT.rglob("*.py") if "yamls" not in path.parts)


def messages() -> list[Message]:
    """Every message that the package raises with an error that users meet."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in source_files()}
    raised = _RAISED | _own_errors(trees.values())
    found: dict[str, Message] = {}
    for path, tree in trees.items():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        texts = _constants(tree)
        for call in _calls(tree, raised):
            text = _text(call.args[0], texts) if call.args else ""
            if _says_something(text):
                found.setdefault(text, Message(text, _name(call), module))
    return list(found.values())


def silent() -> list[str]:
    """Calls of errors whose message is not written where they are made, as ``module:line``."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in source_files()}
    raised = _RAISED | _own_errors(trees.values())
    return [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path, tree in trees.items()
        for call in _calls(tree, raised)
        if not call.args or not _says_something(_text(call.args[0], _constants(tree)))
    ]


def errors() -> str:
    """The messages by room and module. Both have anchors; commands name the module's."""
    by_module: dict[str, list[Message]] = {module: [] for module in refusing_modules()}
    for message in messages():
        by_module.setdefault(message.module, []).append(message)
    by_room: dict[str, list[str]] = {room: [] for room in ROOMS}
    for module in sorted(by_module):
        room, _, rest = module.partition(".")
        by_room.setdefault(room if rest else "", []).append(module)
    taken: set[str] = set()
    parts = []
    for room, modules in by_room.items():
        if modules:
            parts.append(f"### {ROOMS.get(room, room)}")
        for module in modules:
            parts.append(
                f"[`[{anchor_of_module(module)}]`]{{#{anchor_of_module(module)}}} `patch_algorithm.{module}`"
            )
            parts += [_message_entry(one, taken) for one in sorted(by_module[module])] or [PASSED_ON]
    return "\n\n".join(parts)


def refusing_modules() -> list[str]:
    """The modules that raise errors, whether or not they write the message themselves."""
    found = []
    for path in source_files():
        raised = {
            node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Raise) and node.exc is not None
        }
        if {ast.unparse(one) for one in raised} - _NOT_SHOWN:
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


def anchor(text: str) -> str:
    """An id made of the first words of a message, which changes only when they do."""
    words = re.findall(r"[a-z0-9]+", text.replace(HOLE, " ").lower())
    return "error-" + "-".join(words[:8])


def findings() -> str:
    """The checks of the catalogue by subject, each with the reasons and fixes that its findings give."""
    from patch_algorithm.checks import CATALOGUE

    reasons = _findings_in_source()
    parts, subject = [], ""
    for check in CATALOGUE.values():
        if check.subject != subject:
            subject = check.subject
            parts.append(f"### {subject}")
        seen = "; also seen by `patch_level` when training starts" if check.in_algorithm else ""
        lines = [f"{check.summary} *{check.severity.value.capitalize()}{seen}.*"]
        for _, why, fix in reasons.get(check.id, []):
            lines += [f"{label}: {_plain(text)}" for label, text in (("Why", why), ("Fix", fix)) if text]
        body = "\n\n".join(dict.fromkeys(lines))
        parts.append(f"[`{check.id}`]{{#{check.id}}}\n: {textwrap.indent(body, '  ').strip()}")
    return "\n\n".join(parts)


def _findings_in_source() -> dict[str, list[tuple[str, str, str]]]:
    found: dict[str, list[tuple[str, str, str]]] = {}
    for path in source_files():
        tree = ast.parse(path.read_text("utf-8"))
        texts = _constants(tree)
        for call in _calls(tree, {"finding"}):
            named = {keyword.arg: keyword.value for keyword in call.keywords}
            given = [*call.args, *(named[key] for key in ("found", "why", "fix") if key in named)]
            if not given or not isinstance(given[0], ast.Constant):
                continue
            found_text, why, fix = ([_text(one, texts) for one in given[1:]] + ["", "", ""])[:3]
            entry = (found_text, *(text if _says_something(text) else "" for text in (why, fix)))
            found.setdefault(str(given[0].value), []).append(entry)
    return found


def _message_entry(one: Message, taken: set[str]) -> str:
    name = anchor(one.text)
    while name in taken:
        name += "-2"
    taken.add(name)
    first, rest = _first_sentence(one.text)
    below = [_plain(rest)] if rest else []
    below.append(f"*{one.kind}*")
    return f"[{_plain(first)}]{{#{name}}}\n: " + "\n\n  ".join(below)


def _first_sentence(text: str) -> tuple[str, str]:
    cut = re.search(r"(?<=[^.…][.:;])\s+(?=[A-Z`\"'])", text)
    return (text[: cut.start()], text[cut.end() :]) if cut else (text, "")


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing."""
    return re.sub(r"([\\*_\[\]<>{}$#|~`])", r"\\\1", " ".join(text.split()))


def _calls(tree: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node) in names:
            yield node


def _name(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _own_errors(trees: object) -> set[str]:
    known = set(_RAISED)
    for _ in range(3):  # an error may derive from another of ours
        for tree in list(trees):  # type: ignore[call-overload]
            for node in ast.walk(tree):
                bases = {getattr(base, "id", "") for base in getattr(node, "bases", [])}
                if isinstance(node, ast.ClassDef) and bases & (known | {"Exception"}):
                    known.add(node.name)
    return known - _RAISED


def _constants(tree: ast.Module) -> dict[str, str]:
    """The strings that a module gives names to, and those of its functions that are given once."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            text = _text(node.value, {})
            if _says_something(text):
                found.setdefault(node.targets[0].id, text)
    return found


def _text(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, names) for part in node.values)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
        return names.get(node.value.id, HOLE)
    if isinstance(node, ast.Name):
        return names.get(node.id, HOLE)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, names) + _text(node.right, names)
    if isinstance(node, ast.IfExp):
        return _text(node.body, names)
    return HOLE


def _says_something(text: str) -> bool:
    return len(re.findall(r"[A-Za-z]{2,}", text)) >= 2
