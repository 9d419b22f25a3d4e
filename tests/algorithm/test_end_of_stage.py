"""What is done where a stage ends: evaluations, checkpoints, the optimizer, and what is said."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from composer import DataSpec, Evaluator, Trainer
from composer.core import Callback, Event, State
from composer.loggers import InMemoryLogger, Logger
from llmfoundry.data.utils import get_tokens_per_batch_func
from torch.utils.data import DataLoader

from patch_algorithm import PatchLevel
from patch_algorithm.common.announce import warn
from tests.runs.short import collate, make_rows, make_trainer, run, saving, warned

ROWS = make_rows(32, 16)


def evaluator(label: str = "eval", **arguments: Any) -> Evaluator:
    loader = DataLoader(make_rows(4, 16, seed=9), batch_size=4, collate_fn=collate)  # pyright: ignore
    data = DataSpec(loader, get_num_tokens_in_batch=get_tokens_per_batch_func())
    return Evaluator(label=label, dataloader=data, metric_names=["LanguageCrossEntropy"], **arguments)


class Said(Callback):
    """Keeps the events of evaluations, and what was on standard error when a step's callbacks ended."""

    def __init__(self, capture: Any = None) -> None:
        self.evaluated: list[tuple[str, int]] = []
        self.capture = capture
        self.after_step: dict[int, str] = {}

    def eval_end(self, state: State, logger: Logger) -> None:
        assert state.dataloader_label is not None
        self.evaluated.append((state.dataloader_label, int(state.timestamp.batch.value)))

    def batch_end(self, state: State, logger: Logger) -> None:
        if self.capture is not None:
            self.after_step[int(state.timestamp.batch.value)] = self.capture.readouterr().err


def _every_fourth_batch(state: State, event: Event) -> bool:
    return event is Event.BATCH_END and int(state.timestamp.batch) % 4 == 0


@pytest.mark.parametrize(
    ("ratio", "interval", "duration", "batches"),
    [
        ("3ba", "4ba", "8ba", [3, 4, 8]),
        ("4ba", "4ba", "8ba", [4, 8]),
        ("3ba", "1ep", "2ep", [3, 4, 8]),
        ("4ba", "1ep", "2ep", [4, 8]),  # the epoch's own evaluation is the switch's
        ("1ep", "3ba", "2ep", [3, 4, 6, 8]),
        (1.0, "3ba", "6ba", [3, 6]),  # the end of the run evaluates by itself
        ("3ba", 0, "8ba", []),
        # The end of a run is an event that a callable of the user's need not know.
        ("3ba", _every_fourth_batch, "8ba", [3, 4, 8]),
    ],
)
def test_evaluated_once_at_the_switch(ratio: Any, interval: Any, duration: str, batches: list[int]) -> None:
    said = Said()
    rows = ROWS[:16] if "ep" in duration else ROWS
    arguments: dict[str, Any] = {"max_duration": duration, "callbacks": [said], "eval_interval": interval}
    trainer = make_trainer(rows, [PatchLevel(k=4, ratio=ratio)], eval_dataloader=evaluator(), **arguments)
    if ratio == 1.0:
        with warned("ends as a patch model"):
            trainer.fit()
    else:
        trainer.fit()
    assert said.evaluated == [("eval", batch) for batch in batches]


def test_every_evaluator_of_its_own_interval_and_every_stage() -> None:
    said = Said()
    stages = [{"k": 8, "until": "2ba"}, {"k": 4, "until": "5ba"}]
    evaluators = [evaluator("a", eval_interval="2ba"), evaluator("b", eval_interval="8ba")]
    trainer = make_trainer(ROWS, [PatchLevel(stages=stages)], eval_dataloader=evaluators, callbacks=[said])
    own = [e.eval_interval for e in evaluators]
    trainer.fit()
    assert said.evaluated == [(x, n) for n in (2, 4, 5, 6, 8) for x in "ab" if x == "a" or n in (2, 5, 8)]
    assert [e.eval_interval for e in evaluators] == own


def test_no_evaluation_at_the_switch_where_it_is_switched_off() -> None:
    said = Said()
    algorithm = PatchLevel(k=4, ratio="3ba", eval_at_switch=False)
    arguments: dict[str, Any] = {"eval_dataloader": evaluator(), "eval_interval": "8ba", "callbacks": [said]}
    run(ROWS, [algorithm], **arguments)
    assert said.evaluated == [("eval", 8)]


def test_the_end_of_a_stage_is_told_after_its_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys)
    run(ROWS, [PatchLevel(k=4, ratio="3ba", on_switch="reset")], max_duration="5ba", callbacks=[said])
    assert "ended" not in said.after_step[3]
    text = said.after_step[4]
    assert text.count("patch_level: the patch stage ended at batch 3; token level from here on.") == 1
    assert "not comparable" in text
    assert "fall about 4-fold" in text
    assert "Optimizer state reset." in text


def steps_of_adam(trainer: Trainer) -> float:
    (optimizer,) = trainer.state.optimizers
    return float(next(iter(optimizer.state.values()))["step"])


@pytest.mark.parametrize("on_switch", ["reset", "carry"])
def test_a_stage_that_a_resumed_run_leaves_at_once_is_left_like_any_other(
    on_switch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Saved in patches, resumed with a switch that the clock is already at."""
    run(ROWS, [PatchLevel(k=4, ratio="6ba")], **saving(tmp_path))
    algorithm = PatchLevel(k=4, ratio="4ba", on_switch=on_switch, on_mismatch="use_config")
    folder = tmp_path / "again"
    later = {"load_path": str(tmp_path / "ba4.pt"), "save_folder": str(folder), "save_interval": "100ba"}
    trainer = run(ROWS, [algorithm], save_filename="ba{batch}.pt", **later)
    assert steps_of_adam(trainer) == (4 if on_switch == "reset" else 8)
    assert "the patch stage ended at batch 4" in capsys.readouterr().err
    assert (folder / "ba5.pt").exists()  # the first event that saves


@pytest.mark.parametrize(
    ("ratio", "share", "whole"),
    [(0.5, 1.0, None), (2 / 3, (8 + 3 / 4 + 5) / 16, "0.86"), ("12ba", (8 + 4 / 4 + 4) / 16, "0.81")],
)
def test_a_checkpoint_that_knows_nothing_of_patches(
    ratio: Any, share: float, whole: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan is about what is left; where nothing is, a warning says how to get some."""
    rows = make_rows(64, 16)
    run(rows, **saving(tmp_path))
    capsys.readouterr()
    algorithm = PatchLevel(k=4, ratio=ratio, seq_len=4)
    trainer = make_trainer(rows, [algorithm], max_duration="16ba", load_path=str(tmp_path / "ba8.pt"))
    if whole is None:
        with warned("no patch stage is left.*load_weights_only.*ratio to a later time"):
            trainer.fit()
    else:
        trainer.fit()
        assert f"the whole run {whole} of token-only training" in capsys.readouterr().err
    assert algorithm.compute_share == pytest.approx(share)


def test_two_trainers_with_one_algorithm_are_two_runs() -> None:
    algorithm = PatchLevel(k=4, ratio=0.5)
    trainers = [make_trainer(ROWS, [algorithm]) for _ in range(2)]
    for trainer in trainers:
        trainer.fit()
        memory = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
        assert [value for _, value in memory.data["patch_level/stage"]] == [0] * 4 + [1] * 4
        assert algorithm.compute_share == pytest.approx(0.625)
    assert algorithm.stage_clock(trainers[0].state).index == 1


@pytest.mark.parametrize(
    ("built", "fitted", "switch"), [("8ba", "2ba", 4), (None, "6ba", 3), ("4ba", "8ba", 4)]
)
def test_a_fit_of_a_part_of_the_run_does_not_move_the_switch(built: Any, fitted: str, switch: int) -> None:
    algorithm = PatchLevel(k=4, ratio=0.5)
    trainer = make_trainer(ROWS, [algorithm], max_duration=built)
    if built == "8ba":
        with warned("ends as a patch model"):
            trainer.fit(duration=fitted)
    else:
        trainer.fit(duration=fitted)
    assert algorithm.switch_point == f"{switch}ba"


def test_a_fit_in_batches_of_a_trainer_built_in_epochs_of_unknown_length() -> None:
    algorithm = PatchLevel(k=4, ratio=0.5)
    trainer = make_trainer(ROWS, [algorithm], max_duration="2ep", known_length=False)
    trainer.fit(duration="6ba")
    assert algorithm.switch_point == "3ba"


def test_a_warning_shows_no_line_of_this_package() -> None:
    with pytest.warns(UserWarning, match="look here") as caught:
        warn("look here")
    (warning,) = caught
    text = warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno)
    assert text == "patch_algorithm:1: UserWarning: look here\n"


def test_a_stage_starts_where_it_was_entered_in_every_unit(tmp_path: Path) -> None:
    """Of a resumed run, too: per-stage schedules count from there."""
    algorithm = PatchLevel(k=4, ratio="3ba")
    run(ROWS, [algorithm], **saving(tmp_path))
    again = PatchLevel(k=4, ratio="3ba")
    trainer = make_trainer(ROWS, [again], load_path=str(tmp_path / "ba5.pt"))
    clock = again.stage_clock(trainer.state)  # before the fit: the checkpoint's plan
    assert (clock.index, clock.started.batch, clock.started.token) == (1, 3, 3 * 64)
    trainer.fit()
    started = again.stage_clock(trainer.state).started
    assert (started.batch, started.sample, started.token) == (3, 12, 192)


def test_the_checkpoints_plan_goes_before_the_configurations_until_fit(tmp_path: Path) -> None:
    run(ROWS, [PatchLevel(k=4, ratio="3ba")], **saving(tmp_path))
    again = PatchLevel(k=4, ratio="6ba", on_mismatch="use_config")
    trainer = make_trainer(ROWS, [again], load_path=str(tmp_path / "ba2.pt"))
    assert again.stage_clock(trainer.state).ends == "3ba"
    trainer.fit()
    assert again.switch_point == "6ba"


def test_an_evaluator_of_a_fit_that_broke_off_serves_the_next_trainer_as_a_new_one() -> None:
    """Broken off between the end of the stage and its evaluation, which stays asked for."""

    class Stop(Callback):
        def batch_end(self, state: State, logger: Logger) -> None:
            if state.timestamp.batch == 2:
                raise KeyboardInterrupt

    used = evaluator(eval_interval="4ba")
    broken = make_trainer(ROWS, [PatchLevel(k=4, ratio="2ba")], eval_dataloader=used, callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        broken.fit()

    def evaluated(given: Evaluator, *algorithms: PatchLevel) -> list[tuple[str, int]]:
        said = Said()
        run(ROWS, algorithms, max_duration="5ba", eval_dataloader=given, callbacks=[said])
        return said.evaluated

    assert evaluated(used) == evaluated(evaluator(eval_interval="4ba")) == [("eval", 4), ("eval", 5)]
    assert evaluated(used, PatchLevel(k=4, ratio="3ba")) == [("eval", n) for n in (3, 4, 5)]


def test_evaluators_given_to_the_fit_after_one_that_broke_off_evaluate_at_the_switch() -> None:
    class Stop(Callback):
        def batch_start(self, state: State, logger: Logger) -> None:
            if state.timestamp.batch == 1 and not broken:
                broken.append(True)
                raise KeyboardInterrupt

    broken: list[bool] = []
    said, first, second = Said(), evaluator(eval_interval="50ba"), evaluator(eval_interval="50ba")
    own = first.eval_interval, second.eval_interval
    trainer = make_trainer(
        ROWS, [PatchLevel(k=4, ratio="4ba")], eval_dataloader=first, callbacks=[Stop(), said]
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.fit(eval_dataloader=second)
    assert said.evaluated == [("eval", 4), ("eval", 8)]
    assert (first.eval_interval, second.eval_interval) == own


def test_a_saver_of_epochs_saves_under_the_name_that_it_has_without_us(tmp_path: Path) -> None:
    def saved(folder: str, *algorithms: PatchLevel) -> list[str]:
        run(ROWS, algorithms, max_duration="2ep", save_folder=str(tmp_path / folder), save_interval="1ep")
        return sorted(path.name for path in (tmp_path / folder).glob("ep*"))

    assert saved("patches", PatchLevel(k=4, ratio="1ep")) == saved("plain")
    assert "ep0-ba5-rank0.pt" in saved("within", PatchLevel(k=4, ratio="5ba"))
