"""Constant compute per step: k batches of the data loader a patch step, one a token step, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger

from patch_algorithm import PatchLevel
from tests.runs.short import make_rows, make_trainer, run, same, saving
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


def test_a_run_in_epochs_is_refused_with_the_mend() -> None:
    trainer = make_trainer(ROWS, [constant(ratio="2ba")], max_duration="1ep")
    with pytest.raises(ValueError, match=r"constant_compute.*in batches, samples or tokens"):
        trainer.fit()


def test_a_checkpoint_of_other_steps_is_refused(tmp_path: Path) -> None:
    run(ROWS, [PatchLevel(k=4, ratio=0.5)], max_duration="4ba", **saving(tmp_path))
    with pytest.raises(ValueError, match="constant compute"):
        run(ROWS, [constant()], max_duration="4ba", load_path=str(tmp_path / "ba1.pt"))


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
