"""Constant compute per step: k batches of the data loader a patch step, one a token step, in one run."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Evaluator, Trainer
from composer.core import Callback, Event, State
from composer.loggers import InMemoryLogger, Logger, ProgressBarLogger
from composer.optim import LinearWithWarmupScheduler
from torch.utils.data import DataLoader

from patch_algorithm import PatchLevel
from patch_algorithm.optim import PerStageScheduler, WarmupStableDecay
from tests.runs.short import (
    Watch,
    collate,
    make_model,
    make_padded_rows,
    make_rows,
    make_trainer,
    relative_difference,
    run,
    same,
    saving,
)
from tests.support import config, metrics, mpt, train, weights

ROWS = make_rows(64, 16)


class Read(Callback):
    """Notes the rows of each step as the trainer counts them, and the model's positions."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[int, ...]]] = []
        self.positions: list[int] = []
        self.tokens: list[int] = []

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self.positions.append(state.batch["input_ids"].numel())

    def batch_end(self, state: State, logger: Logger) -> None:
        self.tokens.append(int(state.timestamp.token.value))


def counted(trainer: Trainer, counter: str) -> list[int]:
    """The trainer's clock at the start of each step and at the end, on one of its counters."""
    return [int(value) for value in dict.fromkeys(metrics(trainer, f"time/{counter}"))]


def constant(**changes: Any) -> PatchLevel:
    return PatchLevel(**({"k": 4, "ratio": 0.5, "constant_compute": True} | changes))


@pytest.mark.parametrize(
    ("length", "steps"), [("8ba", 8), ("80sp", 8), ("1280tok", 11)], ids=["batches", "samples", "tokens"]
)
def test_steps_of_both_stages_compute_equally_many_positions(length: str, steps: int) -> None:
    read = Read()
    rows = make_rows(128, 16)
    ratio = {"8ba": 0.5, "80sp": "64sp", "1280tok": "768tok"}[length]
    trainer = run(rows, [constant(ratio=ratio)], max_duration=length, callbacks=[read])
    assert set(read.positions) == {4 * 16}
    taken = [4 * 4 * 16 if stage == 0 else 4 * 16 for stage in metrics(trainer, "patch_level/stage")]
    assert read.tokens == [sum(taken[: i + 1]) for i in range(len(taken))]
    assert metrics(trainer, "patch_level/stage").count(0) == {"8ba": 4, "80sp": 4, "1280tok": 3}[length]
    assert int(trainer.state.timestamp.batch.value) == len(taken) == steps


@pytest.mark.parametrize("batch", [2, 4, 5])
def test_resumed_before_at_and_after_the_switch_it_is_identical(tmp_path: Path, batch: int) -> None:
    # 64 rows in their order: 4 patch steps of 12 rows, then 4 token steps of 4.
    algorithm = {"k": 3, "ratio": 0.5}
    rows = make_rows(64, 12)
    whole = run(rows, [constant(**algorithm)], max_duration="8ba", **saving(tmp_path))
    assert counted(whole, "sample") == [0, 12, 24, 36, 48, 52, 56, 60, 64]
    saved = str(tmp_path / f"ba{batch}.pt")
    resumed = run(rows, [constant(**algorithm)], max_duration="8ba", load_path=saved)
    for name in ("loss/train/total", "patch_level/stage", "patch_level/compute_share"):
        assert metrics(resumed, name) == metrics(whole, name)[batch:], name
    assert same(weights(resumed).values(), weights(whole).values())


def test_the_last_rows_of_an_epoch_are_read_and_the_next_begins(capsys: pytest.CaptureFixture[str]) -> None:
    # Six batches of 4 rows: a patch step of four and one of the two that are left.
    trainer = run(make_rows(24, 16), [constant(ratio="4ba")], max_duration="6ba")
    assert counted(trainer, "sample") == [0, 16, 24, 40, 48, 52, 56]
    assert counted(trainer, "epoch")[:3] == [0, 1, 2]
    assert "takes the 2 batches that are left instead of 4" in capsys.readouterr().err


@pytest.mark.parametrize("ratio", ["2ba", 0.5, "1ep"])
def test_a_run_in_epochs_is_refused_with_the_mend(ratio: Any) -> None:
    trainer = make_trainer(ROWS, [constant(ratio=ratio)], max_duration="2ep")
    before = weights(trainer)
    with pytest.raises(ValueError, match=r"constant_compute.*'2ep'.*in batches, samples or tokens"):
        trainer.fit()
    assert same(weights(trainer).values(), before.values())


def test_a_switch_at_the_end_of_an_epoch() -> None:
    # Six batches an epoch: a patch step of four and one of two; then token steps.
    trainer = run(make_rows(24, 16), [constant(ratio="1ep")], max_duration="5ba")
    assert counted(trainer, "sample") == [0, 16, 24, 28, 32, 36]
    assert metrics(trainer, "patch_level/stage") == [0, 0, 1, 1, 1]


@pytest.mark.filterwarnings("ignore:The switch at")
def test_a_run_that_ended_with_an_epoch_is_extended(tmp_path: Path) -> None:
    # Six batches an epoch: a patch step of four and one of two, and then the next epoch.
    rows = make_rows(24, 16)
    run(rows, [constant(ratio="3ba")], max_duration="2ba", **saving(tmp_path))
    extended = run(rows, [constant(ratio="3ba")], max_duration="5ba", load_path=str(tmp_path / "ba2.pt"))
    whole = run(rows, [constant(ratio="3ba")], max_duration="5ba")
    assert counted(extended, "sample") == counted(whole, "sample")[2:] == [24, 40, 44, 48]
    assert metrics(extended, "loss/train/total") == metrics(whole, "loss/train/total")[2:]


def test_a_list_of_stages_halves_the_batches_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    read = Read()
    stages = [{"k": 8, "until": "2ba"}, {"k": 4, "until": "3ba"}, {"k": 2, "until": "5ba"}]
    algorithm = PatchLevel(stages=stages, constant_compute=True)
    trainer = run(make_rows(128, 16), [algorithm], max_duration="6ba", callbacks=[read])
    assert read.positions == [4 * 16] * 6
    assert counted(trainer, "sample") == [0, 32, 64, 80, 88, 96, 100]
    assert metrics(trainer, "patch_level/k") == [8, 8, 4, 2, 2, 1]
    # Six steps on 25 batches.
    assert metrics(trainer, "patch_level/compute_share")[-1] == 6 / 25
    said = capsys.readouterr().err
    assert "steps of k=8, 4 and 2 take 8, 4 and 2 batches of the data loader, a token step 1" in said
    assert "the whole run 0.24 of token-only training" in said


@pytest.mark.parametrize("resumed_at", [1, 2, 3, 5])
def test_a_list_of_stages_is_resumed_identically(tmp_path: Path, resumed_at: int) -> None:
    def down() -> PatchLevel:
        stages = [{"k": 8, "until": "2ba"}, {"k": 4, "until": "3ba"}, {"k": 2, "until": "5ba"}]
        return PatchLevel(stages=stages, constant_compute=True, on_switch="reset")

    rows = make_rows(104, 16)  # 26 batches
    whole = run(rows, [down()], max_duration="6ba", **saving(tmp_path))
    resumed = run(rows, [down()], max_duration="6ba", load_path=str(tmp_path / f"ba{resumed_at}.pt"))
    assert metrics(resumed, "loss/train/total") == metrics(whole, "loss/train/total")[resumed_at:]
    assert same(weights(resumed).values(), weights(whole).values())


@pytest.mark.parametrize("kind", ["packed", "padded", "cut"])
def test_microbatches_of_1_2_and_4_rows_are_equal(kind: str) -> None:
    make = make_padded_rows if kind == "padded" else make_rows
    trainers = [
        run(
            make(64, 32 if kind == "cut" else 16),
            [constant()],
            model=make_model(max_seq_len=8 if kind == "cut" else 32),
            optimizer=torch.optim.SGD,  # Adam would blow rounding up where a gradient is nearly zero
            lr=0.1,
            max_duration="6ba",
            device_train_microbatch_size=microbatch,
        )
        for microbatch in (4, 2, 1)
    ]
    expected = metrics(trainers[0], "loss/train/total")
    assert len(expected) == 6
    for trainer in trainers[1:]:
        assert relative_difference(metrics(trainer, "loss/train/total"), expected) < 1e-6
        for left, right in zip(weights(trainer).values(), weights(trainers[0]).values(), strict=True):
            assert (left - right).norm() <= 1e-6 * right.norm()


def test_it_is_the_run_whose_loader_gives_the_joined_batches() -> None:
    # Patch steps of 16 rows are what a loader of 16 rows gives without constant compute.
    rows = make_rows(64, 16)
    changes = {"max_duration": "4ba", "device_train_microbatch_size": 4}
    joined = run(rows, [constant(ratio="3ba")], **changes)
    plain = run(rows, [PatchLevel(k=4, ratio="3ba")], batch=16, **changes)
    assert metrics(joined, "loss/train/total")[:3] == metrics(plain, "loss/train/total")[:3]


@pytest.mark.parametrize("padded_batch", [0, 3], ids=["first", "last"])
def test_a_mask_that_only_some_batches_have_is_refused_with_the_mend(padded_batch: int) -> None:
    batches = count()

    def mask_where_padded(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        return (
            batch
            if next(batches) == padded_batch
            else {k: v for k, v in batch.items() if k != "attention_mask"}
        )

    trainer = make_trainer(make_padded_rows(64, 16), [constant()], collate_fn=mask_where_padded)
    before = weights(trainer)
    with pytest.raises(ValueError, match=r"the same keys.*'attention_mask'.*constant_compute: false"):
        trainer.fit()
    assert same(weights(trainer).values(), before.values())


@pytest.mark.parametrize(("length", "end"), [("8ba", "8/8"), ("80sp", "80/80"), ("1280tok", "1280/1280")])
def test_the_progress_bar_ends_where_the_run_does(tmp_path: Path, length: str, end: str) -> None:
    ratio = {"8ba": 0.5, "80sp": "64sp", "1280tok": "1024tok"}[length]
    with (tmp_path / "bar").open("w") as stream:
        loggers = [InMemoryLogger(), ProgressBarLogger(stream=stream)]
        trainer = run(make_rows(128, 16), [constant(ratio=ratio)], max_duration=length, loggers=loggers)
        trainer.close()
    assert f" {end} [" in (tmp_path / "bar").read_text()
    assert metrics(trainer, "patch_level/share_of_run")[-1] == 1.0


def test_a_checkpoint_of_other_steps_is_refused(tmp_path: Path) -> None:
    run(ROWS, [PatchLevel(k=4, ratio=0.5)], max_duration="4ba", **saving(tmp_path))
    with pytest.raises(ValueError, match="constant compute"):
        run(ROWS, [constant()], max_duration="4ba", load_path=str(tmp_path / "ba1.pt"))


@pytest.mark.parametrize(
    ("length", "evaluated"),
    [("8ba", [4, 8]), ("80sp", [3, 8]), ("1280tok", [3, 8])],
    ids=["batches", "samples", "tokens"],
)
def test_intervals_in_shares_of_the_run(tmp_path: Path, length: str, evaluated: list[int]) -> None:
    # In samples and tokens, half of the run is reached within the third step of 16 rows.
    at: list[int] = []
    watch = Watch(Event.EVAL_START, lambda state: at.append(int(state.timestamp.batch.value)))
    loader = DataLoader(make_rows(4, 16, seed=9), batch_size=4, collate_fn=collate)  # pyright: ignore
    trainer = run(
        make_rows(128, 16),
        [constant(ratio={"8ba": 0.5}.get(length, "64sp"), checkpoint_at_switch=False, eval_at_switch=False)],
        max_duration=length,
        callbacks=[watch],
        eval_dataloader=Evaluator(label="eval", dataloader=loader, metric_names=["LanguageCrossEntropy"]),
        eval_interval="0.5dur",
        **(saving(tmp_path) | {"save_interval": "0.5dur"}),
    )
    assert at == evaluated
    assert sorted(path.name for path in tmp_path.glob("ba*.pt")) == [f"ba{batch}.pt" for batch in evaluated]
    assert trainer.state.dataloader_len == 32


SCHEDULES = {
    "composer": LinearWithWarmupScheduler("1ep"),
    "composer, not in its warm-up": LinearWithWarmupScheduler("2ba", t_max="2ep"),
    "ours": WarmupStableDecay("1ep"),
    "in every stage": PerStageScheduler(WarmupStableDecay("1ep", t_decay="0ba")),
}


@pytest.mark.filterwarnings("ignore:The warmup duration", "ignore:.*t_max")
@pytest.mark.parametrize("scheduler", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_in_epochs_is_refused_with_the_mend(scheduler: Any) -> None:
    trainer = make_trainer(make_rows(16, 16), [constant()], schedulers=scheduler)
    before = weights(trainer)
    with pytest.raises(ValueError, match=r"constant_compute.*='[12]ep'.*'0\.1dur'"):
        trainer.fit()
    assert same(weights(trainer).values(), before.values())


@pytest.mark.parametrize("known_length", [True, False])
def test_a_subset_of_steps_holds_and_is_there_in_the_next_fit(known_length: bool) -> None:
    # Three steps an epoch: of 16 rows in patches, of 4 on tokens.
    trainer = make_trainer(
        make_rows(64, 16), [constant(ratio="2ba")], train_subset_num_batches=3, known_length=known_length
    )
    trainer.fit(duration="4ba")
    assert counted(trainer, "sample") == [0, 16, 32, 36, 40]
    assert int(trainer.state.timestamp.epoch.value) == 1
    assert trainer.state.dataloader_len == 3
    trainer.fit(duration="3ba")
    assert int(trainer.state.timestamp.epoch.value) == 2


class Unsized:
    """A loader that is no more than an iterable."""

    def __iter__(self) -> Any:
        return iter(DataLoader(make_rows(64, 16), batch_size=4, collate_fn=collate))  # pyright: ignore


def test_a_subset_of_steps_of_an_iterable_without_a_length() -> None:
    trainer = make_trainer(ROWS, [constant(ratio="2ba")])
    trainer.fit(train_dataloader=Unsized(), train_subset_num_batches=3, duration="4ba")
    assert int(trainer.state.timestamp.epoch.value) == 1


def test_a_subset_of_steps_survives_an_interrupted_fit() -> None:
    def interrupt(state: State) -> None:
        if state.timestamp.batch == 1:
            raise KeyboardInterrupt

    watch = Watch(Event.BATCH_END, interrupt)
    trainer = make_trainer(ROWS, [constant(ratio="2ba")], train_subset_num_batches=3, callbacks=[watch])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.state.callbacks.remove(watch)
    trainer.fit(duration="4ba")
    assert trainer.state.dataloader_len == 3


@pytest.mark.parametrize("loader", ["text", "pile"])
def test_streamed_runs_are_resumed_identically_with_several_workers(
    corpus: Path, tmp_path: Path, loader: str
) -> None:
    cfg = config(corpus, mpt(), algorithms={"patch_level": {"k": 4, "ratio": 0.5, "constant_compute": True}})
    cfg["train_loader"] |= {"name": loader, "num_workers": 2, "prefetch_factor": 2}
    cfg |= {"save_folder": str(tmp_path / "whole"), "save_interval": "1ba", "save_filename": "ba{batch}.pt"}
    whole = train(cfg)
    assert counted(whole, "token") == [32 * n for n in (0, 16, 32, 48, 52, 56, 60)]
    for batch in (2, 4):
        again = {
            "load_path": str(tmp_path / "whole" / f"ba{batch}.pt"),
            "save_folder": str(tmp_path / str(batch)),
        }
        resumed = train(cfg | again)
        assert metrics(resumed, "loss/train/total") == metrics(whole, "loss/train/total")[batch:]
        assert same(weights(resumed).values(), weights(whole).values())


def test_the_banner_says_what_a_step_takes(capsys: pytest.CaptureFixture[str]) -> None:
    run(ROWS, [constant()], max_duration="2ba")
    said = capsys.readouterr().err
    assert "a patch step takes 4 batches of the data loader, a token step 1" in said
    assert "the whole run 0.40 of token-only training" in said  # 4 * 1/4 + 1 of 5 batches
