"""The JSON of the commands is what docs/json.md says: every key, and its type."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from patch_algorithm.cli import app
from tests.planning.runs import written
from tests.reporting.synthetic import SAME_COMPUTE, SAME_DATA, ends_at, run

PAGE = (Path(__file__).parents[2] / "docs/json.md").read_text("utf-8")
MOMENT = {
    "stage": "integer",
    "k": "integer",
    "step": "integer",
    "raw_tokens": "integer",
    "positions": "integer",
    "flops": "number or null",
    "seconds": "number",
}
EVALUATION = MOMENT | {"loss": "number", "low": "number", "high": "number"}


def documented(command: str) -> dict[str, str]:
    (section,) = re.findall(rf"^## `patch-level {command} --json`$(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
    return dict(re.findall(r"^\| `([^`]+)` \| ([a-z ]+?) \|", section, re.M))


def with_objects(keys: dict[str, str], objects: dict[str, dict[str, str]]) -> dict[str, str]:
    """The keys with those of the objects that the page describes once."""
    every = {key: kind for key, kind in keys.items() if key not in objects}
    for at, inside in objects.items():
        every |= {f"{at}.{key}": kind for key, kind in inside.items()}
        if "null" in keys[at]:
            every[at] = "null"
    return every


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for below in value:
            yield from leaves(below, f"{path}[]")
    else:
        yield path, value


KINDS = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
    dict: "object",
}


def check(outputs: list[Any], keys: dict[str, str], unseen: set[str] | None = None) -> None:
    seen: set[str] = set()
    for output in outputs:
        for path, value in leaves(output):
            path = re.sub(r"^versions\..*", "versions.*", path)
            assert path in keys, f"{path} is not documented"
            allowed, kind = keys[path].split(" or "), KINDS[type(value)]
            assert kind in allowed or (kind == "integer" and "number" in allowed), f"{path}: {kind}"
            seen.add(path)
    assert keys.keys() - seen == (unseen or set())


def said(*words: str) -> Any:
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def test_doctor(tmp_path: Path) -> None:
    outputs = [said("doctor", written(tmp_path), "max_duraton=1ba"), said("doctor")]
    gpus = any(output["gpus"] for output in outputs)
    check(outputs, documented("doctor"), set() if gpus else {"gpus[]"})


def test_plan(tmp_path: Path) -> None:
    file = written(tmp_path)
    times = ("--gpus", "8", "--gpu", "h100", "--price", "2.5")
    writes = ("--twin", str(tmp_path / "twin.yaml"), "--picture", str(tmp_path / "plan.svg"))
    outputs = [
        said("plan", file, *times, *writes, "--suggest", "--flops", "1e12", "--r", "0.3", "--s", "6"),
        said("plan", file),
        said("plan", file, "device_train_microbatch_size=auto", "scheduler.name=of_mine"),
    ]
    keys = documented("plan")
    runs = {key.removeprefix("runs[]."): kind for key, kind in keys.items() if key.startswith("runs[].")}
    # Neither public pairs nor a size of the study are near the tiny model, if the study has none.
    unseen = {key for key in keys if key.startswith(("verdict.points", "verdict.study"))}
    seen = {path for output in outputs for path, _ in leaves(output)}
    check(outputs, with_objects(keys, {"suggestion.runs[]": runs}), unseen - seen)


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patch_algorithm.reporting.writing.write_report", lambda *_: None)
    paths = [
        run(tmp_path / "patch-1", seed=1, loss=ends_at(5.10)),
        run(tmp_path / "patch-2", seed=2, loss=ends_at(5.12)),
        run(tmp_path / "data", SAME_DATA, loss=ends_at(5.00)),
        run(tmp_path / "compute", SAME_COMPUTE, loss=ends_at(5.25)),
        run(tmp_path / "broken", stop=50, ends=False),
        run(tmp_path / "old", seed=None, flops=False),
    ]
    outputs = [
        said("report", *paths[:4], "--out", str(tmp_path / "out")),
        said("report", *paths, "--out", str(tmp_path / "out")),
    ]
    recoveries = [f"recoveries[].{name}" for name in ("before", "after", "level")]
    objects = ["groups[].evals[]", *recoveries]
    inside = dict.fromkeys(objects, EVALUATION) | {"groups[].runs[].end": MOMENT}
    keys = with_objects(documented("report"), inside)
    nullable = {key for key, kind in keys.items() if kind == "null"}
    seen = {path for output in outputs for path, _ in leaves(output)}
    check(outputs, keys, (nullable - seen) | {"evaluations[]"})
