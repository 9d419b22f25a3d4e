"""Event files, through a stand-in for the package that reads them, which is no dependency."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from patch_algorithm.reporting.runs import read_run

PACKAGE = "tensorboard.backend.event_processing"


class Event(NamedTuple):
    wall_time: float
    step: int
    value: float


def scalars() -> dict[str, list[Event]]:
    """What Composer logs of four patch steps and two token steps of 100 raw tokens, with rates."""

    def series(values: list[float], first: int = 0) -> list[Event]:
        return [Event(1000.0 + step, step, value) for step, value in enumerate(values, first)]

    return {
        "loss/train/total": series([9, 8, 7, 6, 5, 4]),
        "time/token": series([0, 100, 200, 300, 400, 500]),
        "patch_level/k": series([4, 4, 4, 4, 1, 1]),
        "patch_level/stage": series([0, 0, 0, 0, 1, 1]),
        "patch_level/compute_share": series([0.25, 0.25, 0.25, 0.25, 0.4, 0.5]),
        "patch_monitor/flops": series([25, 50, 75, 100, 200, 300]),
        "lr-AdamW/group0": series([1, 1, 1, 1, 0.5, 0], first=1),
        "metrics/eval/LanguageCrossEntropy": [Event(1004.5, 4, 6.5), Event(1006.5, 6, 4.5)],
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    class EventAccumulator:
        def __init__(self, path: str, size_guidance: dict[str, int]) -> None:
            assert size_guidance == {"scalars": 0}, "all of them, not a sample"

        def Reload(self) -> None:
            pass

        def Tags(self) -> dict[str, list[str]]:
            return {"scalars": list(scalars())}

        def Scalars(self, tag: str) -> list[Event]:
            return scalars()[tag]

    module: Any = ModuleType("event_accumulator")
    module.EventAccumulator = EventAccumulator
    for name in ("tensorboard", "tensorboard.backend", PACKAGE):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[PACKAGE], "event_accumulator", module, raising=False)
    (tmp_path / "mine" / "logs").mkdir(parents=True)
    (tmp_path / "mine" / "logs" / "events.out.tfevents.1").touch()
    return tmp_path / "mine"


def test_steps_evaluations_and_rates_fall_in_place(folder: Path) -> None:
    found = read_run(str(folder))
    steps = [line.at for line in found.history.steps]
    assert [at.step for at in steps] == [1, 2, 3, 4, 5, 6]
    assert [at.raw_tokens for at in steps] == [100, 200, 300, 400, 500, 600]
    assert [at.k for at in steps] == [4, 4, 4, 4, 1, 1]
    assert [at.positions for at in steps] == [25, 50, 75, 100, 200, 300]
    assert [at.flops for at in steps] == [25, 50, 75, 100, 200, 300]
    assert [at.seconds for at in steps] == [0, 1, 2, 3, 4, 5]
    assert [(at.step, loss) for at, loss in found.evals] == [(4, 6.5), (6, 4.5)]
    assert [(at.step, rate) for at, rate in found.rates][-2:] == [(5, 0.5), (6, 0)]
    assert found.name == "mine"
    assert found.findings == [
        "read from tensorboard: its time includes evaluation, and its planned end is not recorded"
    ]
    assert found.unfinished() is None


def test_several_runs_in_a_folder(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "events.out.tfevents.2").touch()
    with pytest.raises(ValueError, match="several tensorboard runs"):
        read_run(str(folder))


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    (tmp_path / "events.out.tfevents.1").touch()
    with pytest.raises(ValueError, match="pip install tensorboard"):
        read_run(str(tmp_path))
