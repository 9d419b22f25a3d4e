"""What cannot be trained is refused before any weight changes, with its name and the mend."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from composer.algorithms import SeqLengthWarmup
from composer.algorithms.warnings import NoEffectWarning

from patch_algorithm import PatchLevel
from tests.runs.short import (
    Row,
    make_model,
    make_padded_rows,
    make_rows,
    make_trainer,
    run,
    same,
    warned,
)
from tests.support import metrics, weights


@pytest.mark.parametrize("name", ["k", "seq_len"])
@pytest.mark.parametrize("value", [0, -1, 2.5, 4.0, True, False, "4", math.nan, [4], np.float64(4)])
def test_sizes_that_are_no_positive_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="whole number of at least 1") as error:
        PatchLevel(**{name: value})
    assert f"{name}={value!r}" in str(error.value)


def test_k_may_not_be_left_open() -> None:
    with pytest.raises(ValueError, match="k=None"):
        PatchLevel(k=None)  # pyright: ignore


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, True, "half", "-5ba", "10sec", "1iter", None])
def test_ratios_that_are_neither_a_fraction_nor_a_time(value: Any) -> None:
    with pytest.raises(ValueError, match=r"(?s)ratio=.*between 0 and 1.*'90000ba'") as error:
        PatchLevel(ratio=value)
    assert f"ratio={value!r}" in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"k": 4, "target_weights": [1, 2, 3]},
        {"k": 3, "target_weights": [1, 2, 3], "patch_targets": False},
        {"stages": [{"k": 3, "until": 0.3}, {"k": 2, "until": 0.6}], "target_weights": [1, 2, 3]},
    ],
    ids=["another k", "one target", "another k in a stage"],
)
def test_a_list_of_weights_fits_every_stage(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"target_weights=\[1, 2, 3\] holds 3 weights"):
        PatchLevel(**arguments)


def test_the_token_run_of_a_weighted_one_keeps_its_list() -> None:
    assert PatchLevel(k=4, ratio=0, target_weights=[4, 2, 1, 1]).target_weights == (4, 2, 1, 1)


def test_on_mismatch_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="'ignore' is not one of error, use_checkpoint, use_config"):
        PatchLevel(on_mismatch="ignore")


def without(*keys: str) -> list[Row]:
    return [{k: v for k, v in row.items() if k not in keys} for row in make_rows(8, 16)]


def assert_refused(rows: list[Row], algorithm: PatchLevel, message: str, **arguments: Any) -> None:
    """The first step is refused; the model and the instance it may have touched are as before."""
    model = arguments.pop("model", None) or make_model(max_seq_len=8)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        run(rows, [algorithm], model=model, **arguments)
    assert same(before.values(), model.state_dict().values())


# Rows of T tokens, a model of 8 positions.
LENGTHS: dict[str, tuple[int, dict[str, Any], str]] = {
    "shorter than a patch": (3, {"k": 4}, r"3 tokens.*two patches of k=4.*at least 8"),
    "shorter than two patches": (6, {"k": 4}, r"6 tokens.*two patches of k=4.*at least 8"),
    "one patch after the cut": (16, {"k": 4, "seq_len": 1}, r"seq_len=1"),
    "no multiple of k": (14, {"k": 4, "seq_len": 7}, r"14 tokens.*multiple.*k=4.*12"),
    "no multiple of seq_len": (12, {"k": 2}, r"12 tokens.*seq_len=8.*multiple"),
    "no multiple of k*seq_len": (40, {"k": 4}, r"40 tokens.*k\*seq_len=4\*8=32.*multiple"),
    "no multiple of k*seq_len, given": (24, {"k": 4, "seq_len": 4}, r"24 tokens.*4\*4=16.*multiple"),
    "baseline, no multiple of seq_len": (12, {"ratio": 0}, r"12 tokens.*seq_len=8.*multiple"),
    "seq_len above the context": (64, {"k": 4, "seq_len": 16}, r"seq_len=16.*context of 8"),
    "baseline, seq_len above the context": (16, {"k": 1, "seq_len": 16}, r"seq_len=16.*context of 8"),
}


@pytest.mark.parametrize(("T", "arguments", "message"), LENGTHS.values(), ids=LENGTHS)
def test_rows_that_do_not_fit(T: int, arguments: dict[str, Any], message: str) -> None:
    assert_refused(make_rows(8, T), PatchLevel(**({"ratio": 0.5} | arguments)), message)


@pytest.mark.parametrize("key", ["input_ids", "labels"])
def test_batch_without_what_is_needed(key: str) -> None:
    def collate_fn(rows: Any) -> dict[str, Any]:
        batch = torch.utils.data.default_collate(rows)
        return batch | {"attention_mask": torch.ones(len(rows), 16, dtype=torch.int64)}

    assert_refused(without(key), PatchLevel(k=4, ratio=0.5), f"'{key}'.*data loader", collate_fn=collate_fn)


def test_labels_that_are_not_aligned_with_the_tokens() -> None:
    rows = [{**row, "labels": row["labels"][1:]} for row in make_rows(8, 16)]
    assert_refused(rows, PatchLevel(k=4, ratio=0.5), r"\(4, 16\).*\(4, 15\).*aligned")


def test_labels_that_the_data_set_has_shifted() -> None:
    """As nanoGPT's does: the patch loss would have shifted them once more, in silence."""
    rows = [{"input_ids": r["input_ids"][:-1], "labels": r["input_ids"][1:]} for r in make_rows(8, 17)]
    rows[0]["labels"][:5] = -100
    assert_refused(
        rows, PatchLevel(k=4), "'labels' holds the next token .*Leave the shift to the model's loss"
    )


def test_labels_of_rows_that_repeat_a_token_are_not_taken_for_shifted_ones() -> None:
    rows = [{key: torch.full_like(ids, 7) for key, ids in row.items()} for row in make_rows(8, 16)]
    run(rows, [PatchLevel(k=4, ratio="1ba")], max_duration="2ba")


def test_labels_with_another_mark_for_what_is_not_scored() -> None:
    rows = make_rows(8, 16)
    for row in rows:
        row["labels"][:3] = -1
    assert_refused(rows, PatchLevel(k=4), "'labels' holds -1, which is not a token.*must be -100")


@pytest.mark.parametrize("shape", [(1, 16, 16), (16, 16)])
def test_masks_that_have_no_value_for_each_token(shape: tuple[int, ...]) -> None:
    rows = [row | {"attention_mask": torch.ones(shape)} for row in make_rows(8, 16)]
    assert_refused(rows, PatchLevel(k=4), r"'attention_mask' of shape \(4, .*one value per token")


def test_values_for_each_token_that_nobody_can_fold() -> None:
    rows = [{**row, "weights": torch.ones(16)} for row in make_rows(8, 16)]
    assert_refused(rows, PatchLevel(k=4, ratio=0.5), "'weights'.*fold")


def test_later_batch_that_cannot_be_cut() -> None:
    # Padded batches differ in length; the first one says nothing about the others.
    def collate_fn(rows: Any) -> dict[str, Any]:
        seen.append(len(rows))
        T = 16 if len(seen) == 1 else 12
        return {key: value[:, :T] for key, value in torch.utils.data.default_collate(rows).items()}

    seen: list[int] = []
    model = make_model(max_seq_len=8)
    trainer = make_trainer(
        make_padded_rows(16, 16),
        [PatchLevel(k=2, ratio=0.75)],
        model=model,
        max_duration="4ba",
        collate_fn=collate_fn,
    )
    with pytest.raises(ValueError, match=r"12 tokens.*seq_len=8.*multiple"):
        trainer.fit()
    assert len(metrics(trainer, "loss/train/total")) == 1, "not seen before the switch"


def two_instances() -> list[Any]:
    return [PatchLevel(k=4), PatchLevel(k=2)]


def with_warmup() -> list[Any]:
    return [PatchLevel(k=4), SeqLengthWarmup()]


def with_warmup_first() -> list[Any]:
    return [SeqLengthWarmup(), PatchLevel(k=4)]


@pytest.mark.filterwarnings("ignore:.*gradient checkpointing")
@pytest.mark.parametrize(
    ("algorithms", "message"),
    [
        (two_instances, "two patch_level.*Keep one"),
        (with_warmup, "SeqLengthWarmup.*Remove"),
        (with_warmup_first, "SeqLengthWarmup.*Remove"),
    ],
)
def test_algorithms_that_do_not_go_together(algorithms: Callable[[], list[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(make_rows(8, 16), algorithms())


@pytest.mark.parametrize(
    ("ratio", "max_duration"),
    [
        ("2ba", "2ba"),
        ("3ba", "2ba"),
        (1.0, "2ba"),
        ("1dur", "1ep"),
        ("2ep", "1ep"),
        ("4ba", "2ep"),
        ("100sp", "8sp"),
        ("1ep", "2ba"),
        ("2ep", "3ba"),
    ],
)
def test_switch_beyond_the_end_is_a_warning(ratio: float | str, max_duration: str) -> None:
    # Two batches an epoch.
    with warned("ends as a patch model, which cannot generate") as messages:
        trainer = run(make_rows(8, 16), [PatchLevel(k=4, ratio=ratio)], max_duration=max_duration)
    assert "not before the end of the run" in messages[0]
    assert set(metrics(trainer, "patch_level/stage")) == {0}


def test_switch_at_the_last_step_is_no_reason_to_warn() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(make_rows(16, 16), [PatchLevel(k=4, ratio="1ep")], max_duration="5ba")
    assert not [w for w in caught if "patch model" in str(w.message)]


def test_no_effect_is_said_once_and_not_of_a_patched_run() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(make_rows(16, 16), [PatchLevel(k=4, ratio=0.5)], max_duration="4ba")
    assert not [w for w in caught if w.category is NoEffectWarning]


def test_refused_run_leaves_the_trainer_usable() -> None:
    model = make_model(max_seq_len=32)
    trainer = make_trainer(make_rows(8, 6), [PatchLevel(k=4, ratio=0.5)], model=model, max_duration="2ba")
    before = weights(trainer)
    with pytest.raises(ValueError, match="two patches"):
        trainer.fit()
    assert same(before.values(), weights(trainer).values())
    trainer.fit(train_dataloader=make_trainer(make_rows(8, 16)).state.train_dataloader, duration="2ba")
    assert metrics(trainer, "patch_level/stage") == [0, 1]


def test_a_run_that_never_switches_warns_in_any_unit() -> None:
    with warned("ends as a patch model, which cannot generate"):
        run(make_rows(8, 16), [PatchLevel(k=2, ratio="100000tok")], max_duration="2ba")
