"""The zero-shot tasks: a YAML of lm-evaluation-harness each, for data in a local file.

The prompts are rendered here too, by the harness's rules: bad data is refused before a model is loaded.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, TemplateError

__all__ = ["Prompt", "Task", "find_tasks", "tasks"]

_FOLDER = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class Prompt:
    """What the model is asked in one item.

    Attributes:
        contexts: What it reads; one for all continuations, or one for each choice.
        continuations: What is scored after it.
        gold: Which choice is right; ``None`` where there is one continuation and no choice.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int | None


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        config: Its YAML, which the harness takes as it is.
    """

    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What it is called on the command line, and its file without the ending."""
        return self.config["task"]

    @property
    def title(self) -> str:
        """What papers call it."""
        return self.config["metadata"]["title"]

    @property
    def forms(self) -> tuple[tuple[str, ...], ...]:
        """The fields that an item may have; those of one form are needed."""
        return tuple(tuple(form) for form in self.config["metadata"]["forms"])

    @property
    def measures(self) -> tuple[str, ...]:
        """What is measured, such as ``acc_norm``; the last accuracy is the one that papers report."""
        return tuple(one["metric"] for one in self.config["metric_list"])

    def prompt(self, item: Mapping[str, Any]) -> Prompt:
        """Renders an item as the harness does.

        Raises:
            ValueError: If a field is not as expected.
        """
        try:
            return self._prompt(item)
        except (TemplateError, TypeError, KeyError, IndexError, SyntaxError, ValueError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def _prompt(self, item: Mapping[str, Any]) -> Prompt:
        text = _render(self.config["doc_to_text"], item)
        target = _render(self.config["doc_to_target"], item)
        if self.config["output_type"] == "loglikelihood":
            return Prompt((text,), (target,), None)
        listed = self.config["doc_to_choice"]
        choices = ast.literal_eval(_render(listed, item)) if isinstance(listed, str) else listed
        if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
            raise ValueError("the choices are not a list of strings")
        # As in the harness: a text that is a number is that of the right choice, and choices are then read.
        read = text.isdigit()
        gold = text if read else target
        if not gold.isdigit() or int(gold) >= len(choices):
            raise ValueError(f"it has {len(choices)} choices, and {gold!r} is not the number of one (from 0)")
        if read:
            return Prompt(tuple(choices), (f" {target}",), int(gold))
        return Prompt((text,), tuple(f" {choice}" for choice in choices), int(gold))


def tasks() -> dict[str, Task]:
    """All tasks by name."""
    found = [Task(yaml.safe_load(path.read_text("utf-8"))) for path in sorted(_FOLDER.glob("*.yaml"))]
    if not found:
        raise ValueError(f"this installation is broken: there are no tasks in {_FOLDER}. Reinstall it.")
    return {task.name: task for task in found}


def find_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of these names.

    Raises:
        ValueError: If there is no such task.
    """
    known = tasks()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"There is no task {name!r}; there are {', '.join(known)}.{meant}")
    return [known[name] for name in dict.fromkeys(names)]


def _regex_replace(text: str, pattern: str, by: str) -> str:
    return re.sub(pattern, by, text)


_JINJA = Environment(undefined=StrictUndefined, keep_trailing_newline=True)  # as the harness's own
_FILTERS: dict[str, Any] = _JINJA.filters
_FILTERS["regex_replace"] = _regex_replace


def _render(template: str, item: Mapping[str, Any]) -> str:
    return _JINJA.from_string(template).render(**item)
