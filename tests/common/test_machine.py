"""What this machine has, and how progress shows where there is no terminal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from patch_algorithm.common import machine
from patch_algorithm.common.progress_bar import progress_bar


@pytest.mark.parametrize(
    ("files", "cgroup", "cores"),
    [
        ({}, "0::/\n", 64),
        ({"cpu.max": "50000 100000\n"}, "0::/\n", 1),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, "0::/a/b\n", 3),
        ({"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, "4:cpu:/x\n", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/\n", 64),
    ],
)
def test_a_container_has_the_cores_that_its_quota_allows(
    files: dict[str, str], cgroup: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "self").write_text(cgroup)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    assert machine.usable_cores() == cores


def test_without_a_terminal_each_state_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("reading", 100, "B") as bar:
        bar.mininterval = 0.0
        for _ in range(3):
            bar.update(30)
    lines = capsys.readouterr().err.splitlines()
    assert "\r" not in "".join(lines)
    assert len(lines) >= 4
    assert all(line.startswith("reading:") for line in lines)
    assert "90" in lines[-1]
