"""Steps from before a run had its present plan: what they read of the data, and what its record says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from composer.core import Event, State

from patch_algorithm import PatchLevel
from patch_algorithm.checkpoints.training import Training
from tests.runs.short import Watch, run, saving


def of_one_token(number: int) -> list[dict[str, torch.Tensor]]:
    """Rows that hold nothing but their own number, also when they are folded."""
    rows = (torch.full((16,), row) for row in range(number))
    return [{"input_ids": ids_T, "labels": ids_T.clone()} for ids_T in rows]


def read_and_recorded(folder: Path, algorithm: PatchLevel) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """The rows of each step of a resumed run of 8 batches, and k and steps of the stages in its record."""
    rows: list[list[int]] = []

    def note(state: State) -> None:
        rows.append(state.batch["input_ids"][:, 0].tolist())

    resumed = folder / "resumed"
    watch = Watch(Event.AFTER_DATALOADER, note)
    load = {"load_path": str(folder / "ba2.pt")}
    run(of_one_token(64), [algorithm], callbacks=[watch], **load, **saving(resumed))
    state = torch.load(resumed / "ba8.pt", weights_only=False)["state"]
    training = Training.from_state(dict(state["algorithms"])["PatchLevel"], state["timestamp"]["Timestamp"])
    assert training.tokens == state["timestamp"]["Timestamp"]["token"]
    return rows, [(stage.k, stage.steps) for stage in training.stages]


@pytest.mark.filterwarnings("ignore:Watch is not", "ignore:The switch at")
def test_steps_from_before_the_algorithm_are_steps_on_tokens(tmp_path: Path) -> None:
    run(of_one_token(64), max_duration="2ba", **saving(tmp_path))
    algorithm = PatchLevel(k=4, ratio="4ba", constant_compute=True)
    with pytest.warns(UserWarning, match="PatchLevel is not in the state_dict"):
        rows, recorded = read_and_recorded(tmp_path, algorithm)
    assert rows[0] == list(range(8, 24))
    assert [row for step in rows for row in step] == list(range(8, 56))
    assert recorded == [(1, 2), (4, 2), (1, 4)]


@pytest.mark.filterwarnings("ignore:Watch is not", "ignore:The switch at")
def test_use_config_leaves_the_steps_behind_as_they_were(tmp_path: Path) -> None:
    run(of_one_token(64), [PatchLevel(k=4, ratio="4ba")], max_duration="2ba", **saving(tmp_path))
    algorithm = PatchLevel(k=2, ratio="4ba", constant_compute=True, on_mismatch="use_config")
    rows, recorded = read_and_recorded(tmp_path, algorithm)
    assert rows[0] == list(range(8, 16))
    assert [row for step in rows for row in step] == list(range(8, 40))
    assert recorded == [(4, 2), (2, 2), (1, 4)]
