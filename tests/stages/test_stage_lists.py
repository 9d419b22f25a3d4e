"""Several patch stages one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Event, State, Time
from omegaconf import OmegaConf

from patch_algorithm import PatchLevel
from patch_algorithm.patching import PATCH_TARGETS
from tests.runs.short import (
    Watch,
    make_model,
    make_rows,
    make_trainer,
    run,
    same,
    saving,
    warned,
)
from tests.support import metrics, weights

ROWS = make_rows(40, 32)
LIST = [{"k": 8, "until": "2ba"}, {"k": 4, "until": "5ba"}]


def listed(**changes: Any) -> PatchLevel:
    return PatchLevel(**({"stages": LIST} | changes))


def test_stages_follow_each_other_and_cut_rows_to_k_times_seq_len() -> None:
    shapes: list[tuple[torch.Size, torch.Size]] = []
    watch = Watch(Event.AFTER_DATALOADER, lambda state: shapes.append(shapes_of(state)))
    trainer = run(
        ROWS, [listed(seq_len=2)], model=make_model(max_seq_len=8), callbacks=[watch], max_duration="7ba"
    )
    # Rows of 32 tokens: 2 of 16 (2 patches of 8), 4 of 8 (2 patches of 4), 16 of 2 tokens.
    assert shapes == [((8, 2, 8), (8, 2))] * 2 + [((16, 2, 4), (16, 2))] * 3 + [((64, 2), (64, 2))] * 2
    assert metrics(trainer, "patch_level/k") == [8, 8, 4, 4, 4, 1, 1]
    assert metrics(trainer, "patch_level/stage") == [0] * 2 + [1] * 3 + [2] * 2
    assert metrics(trainer, "patch_level/compute_share")[4] == pytest.approx((2 / 8 + 3 / 4) / 5)


def shapes_of(state: State) -> Any:
    targets = state.batch.get(PATCH_TARGETS, state.batch["labels"] if "labels" in state.batch else None)
    return tuple(targets.shape), tuple(state.batch["input_ids"].shape)


def test_each_stage_is_a_run_of_its_own(tmp_path: Path) -> None:
    # With the optimizer reset, the second stage is a plain run of k=4 from the first one's weights.
    trainer = run(ROWS, [listed(on_switch="reset")], **saving(tmp_path))
    model = make_model()
    model.load_state_dict(torch.load(tmp_path / "ba2.pt", weights_only=False)["state"]["model"])
    with warned("ends as a patch model"):
        second = run(ROWS[8:20], [PatchLevel(k=4, ratio=1.0)], model=model, max_duration="3ba")
    assert metrics(second, "loss/train/total") == metrics(trainer, "loss/train/total")[2:5]
    saved = torch.load(tmp_path / "ba5.pt", weights_only=False)["state"]["model"]
    assert same(saved.values(), weights(second).values())


def test_one_stage_listed_is_k_and_ratio() -> None:
    one = run(ROWS, [PatchLevel(stages=[{"k": 4, "until": 0.5}])])
    other = run(ROWS, [PatchLevel(k=4, ratio=0.5)])
    assert metrics(one, "loss/train/total") == metrics(other, "loss/train/total")
    assert same(weights(one).values(), weights(other).values())


def test_ends_that_are_exact_fractions_are_saved_and_compared(tmp_path: Path) -> None:
    thirds = [{"k": 8, "until": "1/3"}, {"k": 4, "until": "2/3dur"}]
    whole = run(ROWS, [listed(stages=thirds)], max_duration="9ba", **saving(tmp_path))
    assert metrics(whole, "patch_level/k") == [8] * 3 + [4] * 3 + [1] * 3
    load = {"max_duration": "9ba", "load_path": str(tmp_path / "ba4.pt")}
    again = run(ROWS, [listed(stages=thirds)], **load)
    assert metrics(again, "loss/train/total") == metrics(whole, "loss/train/total")[4:]
    rounded_up = [{"k": 8, "until": "1/3"}, {"k": 4, "until": 0.67}]
    with pytest.raises(ValueError, match=r"k=4 until 6ba.*configuration says.*k=4 until 7ba"):
        run(ROWS, [listed(stages=rounded_up)], **load)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6])
def test_resumed_around_each_boundary_it_is_identical(tmp_path: Path, batch: int) -> None:
    whole = run(ROWS, [listed(on_switch="reset")], **saving(tmp_path / "whole"))
    again = run(ROWS, [listed(on_switch="reset")], load_path=str(tmp_path / "whole" / f"ba{batch}.pt"))
    assert metrics(again, "patch_level/k") == metrics(whole, "patch_level/k")[batch:]
    assert metrics(again, "loss/train/total") == metrics(whole, "loss/train/total")[batch:]
    assert same(weights(again).values(), weights(whole).values())


@pytest.mark.parametrize(
    ("until", "k"),
    [
        (["4sp", "12sp"], [8, 4, 4, 1]),
        (["33tok", "1ep"], [8, 4, 4, 4, 1, 1]),
        ([0.25, "1ep"], [8, 8, 4, 4, 1, 1, 1, 1]),
        (["1ep", 0.75], [8, 8, 8, 8, 4, 4, 1, 1]),
        (["6ba", "1ep"], [8, 8, 8, 8, 8, 8, 1, 1]),  # the second one's time is over before it begins
    ],
)
def test_boundaries_in_any_unit(until: list[Any], k: list[int]) -> None:
    stages = [{"k": size, "until": end} for size, end in zip((8, 4), until, strict=True)]
    epochs = "ep" in str(until)
    rows = make_rows(16, 32) if epochs else ROWS
    length = "2ep" if epochs and len(k) == 8 else f"{len(k)}ba"
    trainer = run(rows, [PatchLevel(stages=stages)], max_duration=length)
    assert metrics(trainer, "patch_level/k") == k


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([], "not a list of stages"),
        ("8", "not a list of stages"),
        ([{"k": 8}], r"stages\[0\].*'k' and 'until'"),
        ([{"k": 8, "until": "2ba", "x": 1}], r"stages\[0\].*'k' and 'until'"),
        ([{"k": 1, "until": "2ba"}], r"stages\[0\]\.k=1.*at least 2"),
        ([{"k": True, "until": "2ba"}], r"stages\[0\]\.k=True"),
        ([{"k": 8, "until": "soon"}], r"stages\[0\]\.until='soon'.*0\.67"),
        ([{"k": 8, "until": 0.6}, {"k": 4, "until": 0.3}], r"stages\[1\]\.until=0\.3 is not after.*0\.6"),
        ([{"k": 8, "until": "6ba"}, {"k": 4, "until": "6ba"}], r"stages\[1\].*not after"),
    ],
)
def test_bad_lists_are_refused_by_the_constructor(stages: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PatchLevel(stages=stages)


def test_stages_beside_k_are_refused() -> None:
    with pytest.raises(ValueError, match="Both stages and k=2"):
        PatchLevel(k=2, stages=LIST)


def test_order_that_only_the_run_can_tell() -> None:
    # 0.25 of 8 batches is before 5 batches; the constructor cannot know.
    stages = [{"k": 8, "until": "5ba"}, {"k": 4, "until": 0.25}]
    with pytest.raises(ValueError, match=r"stages\[1\]\.until=2 is not after stages\[0\]\.until=5"):
        run(ROWS, [PatchLevel(stages=stages)])


def test_rows_are_checked_against_every_stage_before_the_first_step() -> None:
    stages = [{"k": 4, "until": 0.3}, {"k": 5, "until": 0.6}]
    trainer = make_trainer(make_rows(8, 24), [PatchLevel(stages=stages)])
    with pytest.raises(ValueError, match="not a multiple of the patch size k=5"):
        trainer.fit()
    assert trainer.state.timestamp.batch == 0


def test_checkpoint_of_other_stages_is_refused(tmp_path: Path) -> None:
    with warned("ends as a patch model"):
        run(ROWS, [listed()], max_duration="3ba", **saving(tmp_path))
    other = [{"k": 8, "until": "2ba"}, {"k": 2, "until": "5ba"}]
    with pytest.raises(ValueError, match=r"k=8 until 2ba, k=4 until 5ba.*k=2 until 5ba.*on_mismatch"):
        run(ROWS, [PatchLevel(stages=other)], load_path=str(tmp_path / "ba3.pt"))


def test_clock_tells_where_the_run_stands() -> None:
    clocks: list[tuple[Any, ...]] = []

    def look(state: State) -> None:
        clock = algorithm.stage_clock(state)
        clocks.append((clock.index, clock.count, clock.k, int(clock.started.batch.value), clock.ends))

    algorithm = listed()
    run(ROWS, [algorithm], callbacks=[Watch(Event.BATCH_START, look)], max_duration="7ba")
    first, second = (0, 3, 8, 0, Time(2, "ba")), (1, 3, 4, 2, Time(5, "ba"))
    assert clocks == [first] * 2 + [second] * 3 + [(2, 3, 1, 5, Time(7, "ba"))] * 2


def test_clock_is_there_before_the_first_fit() -> None:
    trainer = make_trainer(ROWS, [algorithm := PatchLevel(k=4, ratio=0.5)])
    assert algorithm.stage_clock(trainer.state).ends == Time(4, "ba")
    assert algorithm.stage_clock(trainer.state).index == 0


def test_stages_may_come_from_omegaconf_and_are_kept_as_plain_mappings() -> None:
    listed = [{"k": 4, "until": "0.25dur"}, {"k": 2, "until": 0.5}]
    algorithm = PatchLevel(stages=OmegaConf.create(listed))  # pyright: ignore[reportArgumentType]
    assert algorithm.stages == listed
    assert {type(stage) for stage in algorithm.stages} == {dict}


@pytest.mark.parametrize("stages", [8, "8", [[8, 4]], {"k": 4, "until": 0.5}])
def test_stages_that_are_no_list_of_mappings(stages: Any) -> None:
    with pytest.raises(ValueError, match=r"stages.*Give a list such as"):
        PatchLevel(stages=stages)


def test_a_run_in_patches_stays_in_patches_under_a_shorter_list(tmp_path: Path) -> None:
    rows = make_rows(32, 16)
    stages = [{"k": 4, "until": "3ba"}, {"k": 2, "until": "6ba"}]
    run(rows, [PatchLevel(stages=stages)], **saving(tmp_path))
    trainer = run(
        rows,
        [PatchLevel(k=2, ratio="6ba", on_mismatch="use_config")],
        load_path=str(tmp_path / "ba4.pt"),
    )
    assert metrics(trainer, "patch_level/k") == [2, 2, 1, 1]
