"""The history of runs in several fits: resumed, killed, made longer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from composer.core import Callback, State
from composer.loggers import Logger

from patch_algorithm import PatchLevel
from patch_algorithm.monitoring.history import HistoryLogger, read
from patch_algorithm.reporting.runs import read_run
from tests.monitoring.recorded_runs import ROWS, axes, evaluator, recorded
from tests.runs.short import make_model, make_trainer, saving


def test_resumed_runs_append_and_the_reader_drops_what_they_repeat(tmp_path: Path) -> None:
    recorded(HistoryLogger(), **saving(tmp_path / "whole"))
    whole = read(tmp_path / "whole" / "history.jsonl")
    path = tmp_path / "history.jsonl"
    for start in (None, 3, 6, 4):
        load = {} if start is None else {"load_path": str(tmp_path / "whole" / f"ba{start}.pt")}
        recorded(HistoryLogger(str(path)), **load)
        history = read(path)
        assert [axes(line) for line in history.steps] == [axes(line) for line in whole.steps]
        assert [axes(line) for line in history.evals] == [axes(line) for line in whole.evals]
        for name in ("loss/train/total", "metrics/eval/LanguageCrossEntropy"):
            assert history.series(name) == whole.series(name)
    assert history.starts == [0, 3, 4], "what began after 6 was trained again"
    assert len(history.settings) == 3
    assert history.ends == [(8, 1.0)], "the ends of what was trained again are dropped"
    assert (history.repeated, history.replaced, history.damaged, history.disordered) == (5 + 2 + 4, 0, [], [])
    kinds = [json.loads(text)["kind"] for text in path.read_text().splitlines()]
    assert kinds.count("step") == 8 + 5 + 2 + 4
    # A new run in the place of the old one.
    recorded(HistoryLogger(str(path)), ratio="1ba", max_duration="2ba")
    assert [line.at.step for line in read(path).steps] == [1, 2]
    assert read(path).starts == [0]


def test_an_evaluation_before_a_resumed_fit(tmp_path: Path) -> None:
    recorded(HistoryLogger(), **saving(tmp_path))
    path = tmp_path / "history.jsonl"
    trainer = make_trainer(
        ROWS,
        [PatchLevel(k=4, ratio="4ba")],
        model=make_model(max_seq_len=8),
        eval_dataloader=evaluator(),
        eval_interval="2ba",
        loggers=[HistoryLogger(str(path))],
        load_path=str(tmp_path / "ba5.pt"),
    )
    trainer.eval()
    assert [line.at.step for line in read(path).steps] == [1, 2, 3, 4, 5]
    assert [line.at.step for line in read(path).evals] == [2, 4, 5]
    trainer.fit()
    assert [line.at.step for line in read(path).steps] == list(range(1, 9))
    assert read(path).starts == [0, 5]


@pytest.mark.filterwarnings("ignore:By the clock, this step belongs to stage 0")
def test_a_second_fit_and_a_clock_set_back(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    trainer = recorded(HistoryLogger(str(path)), ratio="1ba", max_duration="2ba")
    trainer.fit(duration="1ba")
    assert [line.at.step for line in read(path).steps] == [1, 2, 3]
    assert read(path).starts == [0, 2]
    assert read(path).ends == [(2, 1.0), (3, 1.0)]
    trainer.fit(duration="1ba", reset_time=True)
    assert [axes(line)[1:5] for line in read(path).steps] == [(1, 1, 128, 128)]


class Kill(Callback):
    """Ends a fit as a kill does: nothing more is logged."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == self.batch:
            raise RuntimeError("killed")


def test_a_second_fit_is_judged_by_its_own_length(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"max_duration": "2ba", "ratio": "1ba", "callbacks": [Kill(4)]}
    trainer = recorded(HistoryLogger(str(tmp_path / "history.jsonl")), **arguments)
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit(duration="6ba")
    history = read(tmp_path / "history.jsonl")
    assert [
        (s["max_duration"], start) for s, start in zip(history.settings, history.starts, strict=True)
    ] == [
        ("2ba", 0),
        ("8ba", 2),
    ]
    found = read_run(str(tmp_path))
    assert (found.completed, found.share_trained) == (False, 0.5)


def test_an_evaluation_before_the_length_is_known(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    trainer = make_trainer(
        ROWS,
        model=make_model(),
        eval_dataloader=evaluator(),
        loggers=[HistoryLogger(str(path))],
        max_duration=None,  # pyright: ignore
    )
    trainer.eval()
    trainer.fit(duration="1ba")
    history = read(path)
    assert [line.at.step for line in history.evals] == [0, 1]
    assert [settings["max_duration"] for settings in history.settings] == ["1ba"]
    assert history.ends == [(1, 1.0)]
