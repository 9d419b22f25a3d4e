"""One algorithm in several fits and several trainers."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from composer import Trainer
from composer.core import Event, State

from patch_algorithm import PatchLevel
from tests.runs.short import (
    Watch,
    make_rows,
    make_trainer,
    run,
    saving,
    warned,
)
from tests.support import metrics


def test_an_algorithm_may_serve_a_second_trainer() -> None:
    algorithm = PatchLevel(k=2, ratio=0.5)
    for duration in ("4ba", "2ba", "4ba"):
        trainer = run(make_rows(16, 16), [algorithm], max_duration=duration)
        half = int(duration[0]) // 2
        assert metrics(trainer, "patch_level/stage") == [0] * half + [1] * half

    def break_off(state: State) -> None:
        raise RuntimeError("broken off")

    watch = Watch(Event.BEFORE_BACKWARD, break_off)
    with pytest.raises(RuntimeError, match="broken off"):
        run(make_rows(16, 16), [algorithm], max_duration="4ba", callbacks=[watch])
    trainer = run(make_rows(16, 16), [algorithm], max_duration="4ba")
    assert metrics(trainer, "patch_level/stage") == [0, 0, 1, 1]


def saved_by_hand(trainer: Trainer, path: Path) -> dict[str, Any]:
    """What a trainer saves of its algorithm, between fits and events."""
    file = trainer.save_checkpoint(str(path))
    assert file is not None
    ((_, saved),) = torch.load(file, weights_only=False)["state"]["algorithms"]
    return saved


def test_each_trainer_saves_and_loads_its_own_run(tmp_path: Path) -> None:
    algorithm = PatchLevel(k=4, ratio=0.5)
    arguments: dict[str, Any] = {"max_duration": "4ba"}
    first = make_trainer(make_rows(16, 16), [algorithm], **arguments)
    first.fit()
    second = make_trainer(make_rows(16, 16), [algorithm], **arguments)
    assert "stages" not in saved_by_hand(second, tmp_path / "second.pt")
    saved = saved_by_hand(first, tmp_path / "first.pt")
    assert (saved["stage"], saved["positions"]["at_token_level"]) == (1, 256)

    third = make_trainer(make_rows(16, 16), [algorithm], load_path=str(tmp_path / "first.pt"), **arguments)
    assert saved_by_hand(third, tmp_path / "third.pt")["stage"] == 1
    assert saved_by_hand(second, tmp_path / "again.pt")["stage"] == 0
    assert first.state.algorithms[0] is algorithm
    trainers = [first, second, third]
    shares = [trainer.state.algorithms[0].compute_share for trainer in trainers]  # pyright: ignore
    assert shares == [0.625, 1.0, 0.625], "the first's is the latest event's, of the third"
    second.fit()
    assert metrics(second, "patch_level/stage") == [0, 0, 1, 1]
    assert algorithm.compute_share == 0.625
    assert repr(second.state.algorithms[0]) == repr(algorithm)


def test_an_object_added_to_a_second_trainer_by_hand_is_a_run_of_its_own() -> None:
    algorithm = PatchLevel(k=4, ratio=0.5)
    first = make_trainer(make_rows(16, 16), [algorithm], max_duration="4ba")
    second = make_trainer(make_rows(16, 16), max_duration="4ba")
    second.state.algorithms.append(algorithm)
    for trainer in (second, first):
        trainer.fit()
        assert metrics(trainer, "patch_level/stage") == [0, 0, 1, 1]
    assert second.state.algorithms[0] is not algorithm


@pytest.mark.parametrize("breaks_off", [False, True])
def test_an_algorithm_keeps_no_model_of_an_earlier_trainer(breaks_off: bool) -> None:
    def break_off(state: State) -> None:
        if breaks_off and state.timestamp.batch == 1:
            raise RuntimeError("broken off")

    algorithm = PatchLevel(k=4, ratio=0.5)
    gone = []
    for _ in range(2):
        watch = Watch(Event.BEFORE_BACKWARD, break_off)
        trainer = make_trainer(make_rows(16, 16), [algorithm], max_duration="4ba", callbacks=[watch])
        with pytest.raises(RuntimeError, match="broken off") if breaks_off else nullcontext():
            trainer.fit()
        # Not closed: Composer's engine forgets to unregister what is to be done at exit of one that was.
        parameter = next(trainer.state.model.parameters())
        gone += [
            ref(trainer.state),
            ref(trainer.state.model),
            ref(trainer.state.optimizers[0]),
            ref(parameter),
        ]
        del trainer, parameter, watch
        gc.collect()
        assert [kept() for kept in gone] == [None] * len(gone)


def test_a_stage_starts_anew_with_the_clock() -> None:
    algorithm = PatchLevel(k=2, ratio="2ba")
    trainer = make_trainer(make_rows(16, 16), [algorithm], max_duration="4ba")
    trainer.fit()
    assert algorithm.stage_clock(trainer.state).started.batch == 2
    with warned("a stage is never entered again"):
        trainer.fit(reset_time=True)
    assert algorithm.stage_clock(trainer.state).started.batch == 0


def test_a_checkpoint_at_the_switch_is_asked_for_once(tmp_path: Path) -> None:
    """Not again at the same batch of a second fit whose clock starts anew."""
    algorithm = PatchLevel(stages=[{"k": 4, "until": "2ba"}, {"k": 2, "until": "8ba"}])
    arguments: dict[str, Any] = saving(tmp_path) | {"save_interval": "100ba", "save_overwrite": True}
    trainer = make_trainer(make_rows(32, 16), [algorithm], max_duration="4ba", **arguments)
    with warned("ends as a patch model"):
        trainer.fit()
    (tmp_path / "ba2.pt").unlink()
    with warned("a stage is never entered again"):
        trainer.fit(duration="4ba", reset_time=True)
    assert not (tmp_path / "ba2.pt").exists()


def test_a_fit_after_a_broken_one_may_be_given_another_microbatch() -> None:
    def break_off(state: State) -> None:
        if state.timestamp.batch == 1:
            raise RuntimeError("broken off")

    algorithm = PatchLevel(k=4, ratio=0.5, scale_microbatch=True)
    watch = Watch(Event.BEFORE_BACKWARD, break_off)
    trainer = make_trainer(
        make_rows(16, 16), [algorithm], max_duration="4ba", device_train_microbatch_size=2, callbacks=[watch]
    )
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.fit()
    watch.action = lambda state: None
    trainer.fit(device_train_microbatch_size=1)
    assert trainer.state.device_train_microbatch_size == 1


def test_resuming_at_the_end_of_an_epoch_does_not_warn_of_going_back(tmp_path: Path) -> None:
    """The checkpoint has the switch behind it, its clock does not count the epoch yet."""
    rows = make_rows(16, 16)
    run(rows, [PatchLevel(k=2, ratio="1ep")], max_duration="2ep", **saving(tmp_path))
    trainer = make_trainer(
        rows, [PatchLevel(k=2, ratio="1ep")], max_duration="2ep", load_path=str(tmp_path / "ba4.pt")
    )
    assert trainer.state.timestamp.epoch == 0
    trainer.fit()  # warnings are errors
    assert metrics(trainer, "patch_level/stage") == [1] * 4
