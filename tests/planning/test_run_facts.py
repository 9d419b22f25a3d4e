"""What this machine has for a run, through the checks of a whole file: its tokenizer and its save folder."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.checks import Severity
from tests.planning.test_doctor import found, ids


def test_a_tokenizer_that_is_damaged(healthy: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    file = shutil.copytree(corpus / "tokenizer", tmp_path / "tokenizer") / "tokenizer.json"
    file.write_text(file.read_text("utf-8")[:200])
    (damaged,) = [
        one
        for one in found(healthy, tokenizer__name=str(tmp_path / "tokenizer"))
        if one.id.startswith("tokenizer")
    ]
    assert (damaged.id, damaged.severity) == ("tokenizer-not-found", Severity.error)
    assert f"tokenizer.name: {file} cannot be read: " in damaged.found


def test_checkpoints_in_the_save_folder(healthy: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ep0-ba2-rank0.pt").touch()
    assert ids(healthy, save_folder=str(tmp_path)) == ["save-folder-used"]
    assert ids(healthy, save_folder=str(tmp_path), autoresume=True) == []
    (tmp_path / "latest-rank0.pt").symlink_to(tmp_path / "ep0-ba2-rank0.pt")
    loads: dict[str, Any] = {
        "save_folder": str(tmp_path),
        "load_path": str(tmp_path / "latest-rank{rank}.pt"),
    }
    assert ids(healthy, **loads) == []
    assert ids(healthy, **loads, load_weights_only=True) == ["save-folder-used"]
    (tmp_path / "ep0-ba3-rank0.pt").touch()
    assert ids(healthy, **loads) == ["save-folder-used"], "of a step after the one that is loaded"
    assert ids(healthy, **loads | {"load_path": "s3://bucket/mine.pt"}) == []
    assert ids(healthy, save_folder=str(tmp_path) + "/{run_name}") == []


def test_space_for_checkpoints(
    healthy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patch_algorithm.planning import run_facts

    usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
    monkeypatch.setattr(run_facts.shutil, "disk_usage", lambda folder: usage)
    saving: dict[str, Any] = {"save_folder": str(tmp_path), "save_interval": "50ba"}
    assert ids(healthy, **saving) == ["disk-space"]
    assert ids(healthy, **saving, save_num_checkpoints_to_keep=1) == []


def test_a_save_folder_below_one_that_may_not_be_searched(
    healthy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an ordinary user meets it with /root/runs; for root there is no such folder."""
    hidden, stat, access = tmp_path / "root", os.stat, os.access
    hidden.mkdir()

    def refuse(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(path).startswith(f"{hidden}/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: path != hidden and access(path, mode))
    assert ids(healthy, save_folder=str(hidden / "runs" / "mine")) == ["folder-not-writable"]
