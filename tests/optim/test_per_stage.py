"""A scheduler inside per_stage does in every stage what it does in a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Event, State
from composer.optim import (
    ConstantScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearScheduler,
    StepScheduler,
)

from patch_algorithm import PatchLevel
from patch_algorithm.optim.per_stage import PerStageScheduler
from tests.optim.rates import ROWS, rates, start
from tests.runs.short import Watch, make_model, make_trainer, saving

COSINE: dict[str, Any] = {"name": "cosine_with_warmup", "t_warmup": "2ba", "alpha_f": 0.1}


def cosine() -> CosineAnnealingWithWarmupScheduler:
    return CosineAnnealingWithWarmupScheduler(t_warmup="2ba", alpha_f=0.1)


def test_rates_are_those_worked_out_by_hand() -> None:
    # Composer's rates are a step late, but for the first of a run: 1, 1, 3/4, 1/2 over four batches.
    assert rates(LinearScheduler(), max_duration="4ba") == [1, 1, 0.75, 0.5]
    assert rates(PerStageScheduler(LinearScheduler()), PatchLevel(k=4, ratio=0.5)) == [1, 1, 0.75, 0.5] * 2


@pytest.mark.parametrize(
    ("max_duration", "ratio", "lengths"),
    [
        ("8ba", "3ba", ("3ba", "5ba")),
        ("32sp", 0.25, ("8sp", "24sp")),
        ("512tok", "128tok", ("128tok", "384tok")),
        ("8ba", "192tok", ("192tok", "5ba")),
        ("2ep", 0.25, ("2ba", "6ba")),
        ("2ep", "1ep", ("1ep", "1ep")),
        ("8ba", "1ep", ("4ba", "4ba")),
    ],
)
def test_stages_are_like_separate_runs(max_duration: str, ratio: Any, lengths: tuple[str, str]) -> None:
    rows = ROWS[:16] if "ep" in max_duration + str(ratio) else ROWS
    scheduler = LinearScheduler(alpha_i=1.0, alpha_f=0.2)
    together = rates(
        PerStageScheduler(scheduler), PatchLevel(k=4, ratio=ratio), max_duration=max_duration, rows=rows
    )
    apart = [rate for length in lengths for rate in rates(scheduler, max_duration=length, rows=rows)]
    assert len(together) == 8
    assert together == pytest.approx(apart)


def test_warmup_and_cosine_start_again_from_a_configuration() -> None:
    together = rates(PerStageScheduler(COSINE), PatchLevel(k=4, ratio=0.5))
    assert together == rates(cosine(), max_duration="4ba") * 2
    assert together[4:7] == [0, 0, 0.5]


def test_one_scheduler_for_each_stage() -> None:
    scheduler = PerStageScheduler(schedulers=[ConstantScheduler(0.5), COSINE])
    assert rates(scheduler, PatchLevel(k=4, ratio=0.5)) == [0.5] * 4 + rates(cosine(), max_duration="4ba")


def test_several_patch_stages() -> None:
    algorithm = PatchLevel(stages=[{"k": 4, "until": 0.25}, {"k": 2, "until": 0.625}])
    together = rates(PerStageScheduler(LinearScheduler()), algorithm)
    apart = [rate for n in (2, 3, 3) for rate in rates(LinearScheduler(), max_duration=f"{n}ba")]
    assert together == pytest.approx(apart)


def test_scale_schedule_ratio_stretches_what_is_inside() -> None:
    # 4 batches become 8, the stages 4 each; StepScheduler's step of 1 batch becomes 2.
    halve = StepScheduler(step_size="1ba", gamma=0.5)
    together = rates(
        PerStageScheduler(halve), PatchLevel(k=4, ratio=0.5), max_duration="4ba", scale_schedule_ratio=2.0
    )
    assert together == [1, 1, 1, 0.5] * 2


def test_plain_functions_run_inside() -> None:
    def by_batch(state: State) -> float:
        assert state.max_duration is not None
        return 1 - state.timestamp.batch.value / state.max_duration.value

    assert rates(PerStageScheduler(by_batch), PatchLevel(k=4, ratio=0.5)) == [1, 1, 0.75, 0.5] * 2  # pyright: ignore
    elapsed = PerStageScheduler(lambda state: 1 - state.get_elapsed_duration().value)  # pyright: ignore
    assert rates(elapsed, PatchLevel(k=4, ratio=0.5)) == [1, 1, 0.75, 0.5] * 2


@pytest.mark.parametrize(("switch", "batches"), [("4ba", 4), ("5ba", 8), ("1ep", 4), ("6ba", 8), ("8ba", 8)])
def test_schedulers_that_are_stepped_once_an_epoch(switch: str, batches: int) -> None:
    """A rate holds for an epoch of 4 batches; a stage has its own from the first that begins in it."""
    used = rates(
        PerStageScheduler(schedulers=[ConstantScheduler(0.5), ConstantScheduler(0.25)]),
        PatchLevel(k=4, ratio=switch),
        max_duration="3ep",
        rows=ROWS[:16],
        step_schedulers_every_batch=False,
    )
    assert used == [0.5] * batches + [0.25] * (12 - batches)


def test_token_training_throughout_is_one_stage() -> None:
    whole = rates(LinearScheduler())
    for algorithm in (PatchLevel(k=1, seq_len=8), PatchLevel(k=4, ratio=0.0, seq_len=8)):
        assert rates(PerStageScheduler(LinearScheduler()), algorithm) == whole


def test_data_of_unknown_length_in_other_units() -> None:
    together = rates(PerStageScheduler(LinearScheduler()), PatchLevel(k=4, ratio="4ba"), known_length=False)
    assert together == [1, 1, 0.75, 0.5] * 2


@pytest.mark.parametrize("batch", [3, 4, 5])
def test_resumed_runs_have_the_same_rates(tmp_path: Path, batch: int) -> None:
    def begin(**changes: Any) -> tuple[Trainer, list[float]]:
        return start(PerStageScheduler(COSINE), PatchLevel(k=4, ratio=0.5), model=make_model(), **changes)

    trainer, whole = begin(**saving(tmp_path))
    trainer.fit()
    resumed, used = begin(load_path=str(tmp_path / f"ba{batch}.pt"))
    resumed.fit()
    assert used == whole[batch:]


def test_extended_run_goes_on_in_its_last_stage() -> None:
    trainer, used = start(PerStageScheduler(LinearScheduler()), PatchLevel(k=4, ratio="4ba"), rows=ROWS)
    trainer.fit()
    trainer.fit(duration="4ba")
    # The token stage is now of 8 batches, of which 4 are done; the first rate was set before that.
    assert used[8:] == [0.25, 1 - 4 / 8, 1 - 5 / 8, 1 - 6 / 8]


def test_scheduler_serves_a_second_trainer() -> None:
    # A patch stage of one batch: its rate is wrong if a trainer's first call is taken for a step's.
    scheduler = PerStageScheduler(schedulers=[ConstantScheduler(0.5), LinearScheduler()])
    expected = [0.5, *rates(LinearScheduler(), max_duration="7ba")]
    for _ in range(2):
        assert rates(scheduler, PatchLevel(k=4, ratio="1ba")) == pytest.approx(expected)


@pytest.mark.parametrize("groups", [2, 3])
def test_every_parameter_group_has_the_rates_of_its_stage(groups: int) -> None:
    # Composer asks once for each group. A patch stage of one batch shows who got the next stage's rate.
    used: list[list[float]] = []

    class InGroups(torch.optim.SGD):
        def __init__(self, params: Any, lr: float) -> None:
            listed = list(params)
            super().__init__([{"params": listed[i::groups]} for i in range(groups)], lr=lr)

    def note(state: State) -> None:
        used.append([group["lr"] for group in state.optimizers[0].param_groups])

    scheduler = PerStageScheduler(schedulers=[ConstantScheduler(0.5), LinearScheduler()])
    trainer = make_trainer(
        ROWS,
        [PatchLevel(k=4, ratio="1ba")],
        model=make_model(),
        optimizer=InGroups,
        lr=1.0,
        schedulers=scheduler,
        callbacks=[Watch(Event.BATCH_START, note)],
    )
    trainer.fit()
    expected = [0.5, *rates(LinearScheduler(), max_duration="7ba")]
    assert used == [pytest.approx([rate] * groups) for rate in expected]


def test_epochs_that_nobody_can_count_do_not_end_a_run_at_a_boundary() -> None:
    by_stage = PerStageScheduler(schedulers=[lambda _: 0.1, lambda _: 0.2, lambda _: 0.3])  # pyright: ignore
    algorithm = PatchLevel(stages=[{"k": 4, "until": "2ba"}, {"k": 2, "until": "1ep"}])
    used = rates(by_stage, algorithm, max_duration="10ba", known_length=False)
    assert used[:8] == [0.1] * 2 + [0.2] * 6
    assert used[9:] == [0.3], "an epoch's end is known when it has come"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "either `scheduler`"),
        ({"scheduler": COSINE, "schedulers": [COSINE]}, "either `scheduler`"),
        ({"schedulers": []}, "not a list"),
        ({"schedulers": COSINE}, "not a list"),
        ({"scheduler": "cosine_with_warmup"}, "neither a Composer scheduler nor"),
        ({"scheduler": {"t_warmup": "2ba"}}, "names no scheduler"),
        ({"scheduler": {"name": "no_such_scheduler"}}, "no_such_scheduler"),
        ({"scheduler": {"name": "cosine_with_warmup", "warmup": "2ba"}}, "cannot be built"),
        ({"scheduler": {"name": "per_stage", "scheduler": COSINE}}, "inside per_stage"),
        ({"scheduler": PerStageScheduler(COSINE)}, "inside per_stage"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PerStageScheduler(**arguments)


@pytest.mark.parametrize(
    ("scheduler", "ratio", "match"),
    [
        # Of the second stage, days before it begins: its length is in batches, the first's in tokens.
        (
            {"name": "cosine_with_warmup", "t_warmup": "64tok"},
            "128tok",
            "stage 2 of 2 .k=1, until 8ba. refuses",
        ),
        ({"name": "cosine_with_warmup", "t_warmup": "2ba", "t_max": "5ba"}, "2ba", "stage 2 of 2"),
    ],
)
def test_schedulers_that_refuse_a_stage_do_so_before_training(
    scheduler: dict[str, Any], ratio: str, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        start(PerStageScheduler(scheduler), PatchLevel(k=4, ratio=ratio))


def test_runs_that_it_cannot_serve_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match="does not have"):
        start(PerStageScheduler(COSINE))
    with pytest.raises(ValueError, match="3 schedulers for 2 stages"):
        start(PerStageScheduler(schedulers=[COSINE] * 3), PatchLevel(k=4, ratio=0.5))
    with pytest.raises(ValueError, match="max_duration"):
        start(PerStageScheduler(COSINE), PatchLevel(k=4, ratio=0.5), max_duration=None)
    one_argument = PerStageScheduler(lambda state: 1.0)  # pyright: ignore
    with pytest.raises(ValueError, match="scale_schedule_ratio"):
        start(one_argument, PatchLevel(k=4, ratio=0.5), scale_schedule_ratio=2.0)
