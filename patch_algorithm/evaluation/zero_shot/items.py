"""Items of zero-shot tasks, from local files, each checked before a model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patch_algorithm.evaluation.zero_shot.task_files import Prompt, Task, find_tasks, tasks

__all__ = ["TaskData", "read_tasks"]

_ENDINGS = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class TaskData:
    """A task with its items.

    Attributes:
        task: The task.
        path: The file that they are from.
        items: The fields that the task reads, of each.
        prompts: What the model is asked in each.
        digest: A hash of the items.
        left_out: How many were left out since, because the model cannot score them.
    """

    task: Task
    path: Path
    items: tuple[dict[str, Any], ...]
    prompts: tuple[Prompt, ...]
    digest: str
    left_out: int = 0


def read_tasks(folder: str, names: Sequence[str] = (), limit: int | None = None) -> list[TaskData]:
    """Reads the data of tasks.

    Args:
        folder: Holds, at any depth, a file for each: ``piqa.jsonl``, ``piqa.json`` or ``piqa.parquet``.
        names: The tasks; by default all that have a file.
        limit: Items of each that are read, from the first; all by default.

    Raises:
        ValueError: If a task is unknown, has no file, or its file is not what its name says.
    """
    place = Path(folder)
    wanted = find_tasks(names) if names else list(tasks().values())
    if not place.is_dir():
        raise ValueError(f"--data {folder} is not a folder. Give the folder with the files of the tasks.")
    files = {task.name: _file(place, task.name) for task in wanted}
    missing = [name for name, file in files.items() if file is None]
    if (names and missing) or len(missing) == len(wanted):
        raise ValueError(
            f"{folder} has no data of {', '.join(missing)}: expected {missing[0]}{_ENDINGS[0]} "
            f"(or {', '.join(_ENDINGS[1:])}) and so on. The documentation of `patch-level eval` says where "
            "they come from."
        )
    return [_read(task, file, limit) for task in wanted if (file := files[task.name]) is not None]


def _file(folder: Path, name: str) -> Path | None:
    found = [
        path for ending in _ENDINGS for path in sorted(folder.rglob(f"{name}{ending}")) if path.is_file()
    ]
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise ValueError(f"{folder} has several files of {name}: {listed}. Leave one.")
    return found[0] if found else None


def _read(task: Task, file: Path, limit: int | None) -> TaskData:
    items: list[dict[str, Any]] = []
    prompts: list[Prompt] = []
    for place, content in _contents(file):
        if limit is not None and len(items) == limit:
            break
        form = next((form for form in task.forms if set(form) <= content.keys()), None)
        if form is None:
            expected = " or ".join(", ".join(form) for form in task.forms)
            raise ValueError(
                f"{file}, {place}: expected the fields {expected}; it has {', '.join(map(str, content))}."
            )
        optional = {name: content[name] for name in ("subject", "category") if name in content}
        item = {name: content[name] for name in form} | optional
        try:
            prompts.append(task.prompt(item))
        except ValueError as error:
            raise ValueError(f"{file}, {place} is not an item of {task.title}: {error}.") from error
        items.append(item)
    if not items:
        raise ValueError(f"{file} holds no items.")
    if len({frozenset(item) for item in items}) > 1:
        raise ValueError(f"The items in {file} do not all have the same fields.")
    digest = hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()
    return TaskData(task, file, tuple(items), tuple(prompts), digest)


def _contents(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix == ".parquet":
        try:
            rows = pq.read_table(file).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} is not a Parquet file, or is damaged ({error}).") from error
        yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
        return
    try:
        lines = file.read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file in UTF-8 ({error}).") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is not JSON ({error}).") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file}, line {number} is not a JSON object.")
        yield f"line {number}", content
