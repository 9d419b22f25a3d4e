"""What the algorithm says of a run at its start, where nobody has read the configuration before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from composer.core import Algorithm, Event, State
from composer.optim import CosineAnnealingWithWarmupScheduler

from patch_algorithm import PatchLevel
from patch_algorithm.checks.shown import already_shown
from tests.runs.short import Watch, make_rows, run
from tests.support import config, mpt, train

COSINE = {"name": "cosine_with_warmup", "t_warmup": "1ba"}
GOOD = {"name": "warmup_stable_decay", "t_warmup": "1ba", "t_decay": "1ba"}


def said(corpus: Path, caplog: pytest.LogCaptureFixture, **changes: Any) -> str:
    """What the log holds of a run of 6 batches, 4 of them in patches, that was trained."""
    caplog.clear()
    algorithm = {"k": 4, "ratio": "2/3", "seq_len": 8} | changes.pop("algorithm", {})
    cfg = config(corpus, mpt(), algorithms={"patch_level": algorithm}) | {"scheduler": GOOD} | changes
    with caplog.at_level("INFO", "patch_algorithm"):
        train(cfg)
    return " ".join(word for record in caplog.records for word in record.getMessage().split())


def test_a_bad_run_under_llm_foundry(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    optimizer = {"name": "decoupled_adamw", "lr": 1e-3, "weight_decay": 0.1}
    text = said(corpus, caplog, scheduler=COSINE, optimizer=optimizer)
    assert text.count("rate-low-at-switch") == 1
    assert (
        "CosineAnnealingWithWarmupScheduler: 34.5 % of the peak learning rate is left at the switch" in text
    )
    assert "weight-decay-decoupled" in text
    assert "token-stage-short" in text
    assert "rows-of-context" not in text


def test_rows_of_the_context(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"algorithm": {"seq_len": 32, "rehearse_switch": False}, "model": mpt(max_seq_len=32)}
    text = said(corpus, caplog, **changes)
    assert (
        "rows-of-context: max_seq_len of the training data=32: the patch stage trains on 8 positions" in text
    )
    assert "switch-not-rehearsed" in text


def test_what_train_py_has_told_is_not_told_again(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    with already_shown(["token-stage-short"]):
        text = said(corpus, caplog)
    assert "token-stage-short" not in text
    assert "warning" not in text
    with already_shown(["token-stage-short"]):
        assert "rate-low-at-switch" in said(corpus, caplog, scheduler=COSINE)


def test_schedules_of_stages_are_asked_in_their_stages(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = said(corpus, caplog, scheduler={"name": "per_stage", "scheduler": COSINE})
    assert "token-stage-short" in text
    assert "rate-" not in text


def test_asking_leaves_the_trainers_schedule_alone() -> None:
    """The rates of a run are those of the run without the algorithm."""
    seen = [_rates([]), _rates([PatchLevel(k=4, ratio="2/3")])]
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 3


class Refuses(CosineAnnealingWithWarmupScheduler):
    """Cannot be copied, as one that holds a tensor of a graph."""

    def __deepcopy__(self, memo: object) -> Any:
        raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")


class Peculiar(CosineAnnealingWithWarmupScheduler):
    """Reads of the trainer what only it has, and raises an error of its own."""

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        if not isinstance(state, State):
            raise NoTrainerError
        return super().__call__(state, ssr)


class NoTrainerError(Exception):
    """Of a user's."""


@pytest.mark.parametrize("kind", [Refuses, Peculiar])
def test_a_schedule_that_cannot_be_asked_is_trained_with(kind: type) -> None:
    assert _rates([PatchLevel(k=4, ratio="2/3")], kind("2ba")) == _rates([])


def _rates(algorithms: list[Algorithm], schedule: Any = None) -> list[float]:
    rates: list[float] = []
    watch = Watch(Event.BATCH_START, lambda state: rates.append(state.optimizers[0].param_groups[0]["lr"]))
    schedule = schedule or CosineAnnealingWithWarmupScheduler("2ba")
    run(make_rows(24, 32), algorithms, schedulers=schedule, max_duration="6ba", callbacks=[watch])
    return rates
