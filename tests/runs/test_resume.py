"""Saved and resumed runs: identical to uninterrupted ones, with the switch where it was."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.algorithms.warnings import NoEffectWarning
from composer.core import Event

from patch_algorithm import PatchLevel
from tests.runs.short import (
    Watch,
    make_model,
    make_padded_rows,
    make_rows,
    make_trainer,
    run,
    same,
    saving,
    warned,
)
from tests.support import metrics, weights

ROWS = make_rows(32, 16)
PADDED = make_padded_rows(32, 16)
Whole = tuple[Trainer, Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run of 8 batches over rows of 16, patches of 4 for half of it, saved every batch."""
    folder = tmp_path_factory.mktemp("whole")
    return run(ROWS, [PatchLevel(k=4, ratio=0.5)], **saving(folder)), folder


def checkpoint(folder: Path, batch: int) -> dict[str, Any]:
    return torch.load(folder / f"ba{batch}.pt", weights_only=False)


def algorithm_state(folder: Path, batch: int) -> dict[str, Any]:
    return dict(checkpoint(folder, batch)["state"]["algorithms"])["PatchLevel"]


def resume(folder: Path, batch: int, *algorithms: PatchLevel, **changes: Any) -> Trainer:
    """Continues the run saved in ``folder`` after ``batch`` batches, in a new trainer."""
    load = {"load_path": str(folder / f"ba{batch}.pt")}
    return run(changes.pop("rows", ROWS), algorithms, **(load | changes))


def stages(trainer: Trainer) -> list[float]:
    return metrics(trainer, "patch_level/stage")


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of a nested state, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for entry in value.values() for t in tensors(entry)]
    return [t for entry in value for t in tensors(entry)] if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize("epochs", [False, True], ids=["batches", "epochs"])
def test_resumed_runs_are_identical_to_uninterrupted_ones(tmp_path: Path, epochs: bool) -> None:
    # Six batches, or two epochs of three; the switch comes after three. Dropout draws random numbers.
    rows, length = (PADDED[:12], {"max_duration": "2ep"}) if epochs else (PADDED, {"max_duration": "6ba"})
    dropout = {"resid_pdrop": 0.1}
    folders = [tmp_path / "whole", *(tmp_path / f"from{batch}" for batch in (2, 3, 4))]
    whole = run(
        rows, [PatchLevel(k=4, ratio=0.5)], model=make_model(**dropout), **length, **saving(folders[0])
    )
    assert stages(whole) == [0, 0, 0, 1, 1, 1]
    last = checkpoint(folders[0], 6)["state"]
    for batch, folder in zip((2, 3, 4), folders[1:], strict=True):
        resumed = resume(
            folders[0],
            batch,
            PatchLevel(k=4, ratio=0.5),
            rows=rows,
            model=make_model(**dropout),
            **length,
            **saving(folder),
        )
        for name in ("loss/train/total", "patch_level/stage", "patch_level/compute_share"):
            assert metrics(resumed, name) == metrics(whole, name)[batch:], (batch, name)
        # Token steps only. Resumed at the end of an epoch, the trainer first logs an empty metric.
        name = "metrics/train/LanguageCrossEntropy"
        logged = [value for value in metrics(resumed, name) if not math.isnan(value)]
        assert logged == metrics(whole, name)[max(batch - 3, 0) :]
        again = checkpoint(folder, 6)["state"]
        assert same(tensors(again["model"]), tensors(last["model"]))
        assert same(tensors(again["optimizers"]), tensors(last["optimizers"]))
        assert algorithm_state(folder, 6) == algorithm_state(folders[0], 6)


def test_state_is_made_of_primitives(whole: Whole, tmp_path: Path) -> None:
    state = algorithm_state(whole[1], 3)
    assert leaves(state) <= {int, float, str, bool, type(None)}
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state
    assert state["stages"] == [{"k": 4, "until": 4, "unit": "ba"}]
    assert (state["seq_len"], state["stage"]) == (16, 0)


def leaves(value: Any) -> set[type]:
    """The types of what a nested state is made of."""
    if isinstance(value, dict):
        return {kind for entry in [*value.keys(), *value.values()] for kind in leaves(entry)}
    return {kind for entry in value for kind in leaves(entry)} if isinstance(value, list) else {type(value)}


def test_weights_in_checkpoints_are_those_of_a_plain_model(whole: Whole) -> None:
    plain = make_model().state_dict()
    for batch in (3, 4, 8):
        assert list(checkpoint(whole[1], batch)["state"]["model"]) == list(plain)


@pytest.mark.parametrize(
    "algorithm",
    [
        PatchLevel(),
        PatchLevel(k=2, ratio="5ba", seq_len=8, on_mismatch="use_config", on_switch="reset"),
        PatchLevel(stages=[{"k": 8, "until": "2ba"}, {"k": 4, "until": 0.5}], target_weights="inverse"),
        PatchLevel(patch_inputs=False, rehearse_switch=False, scale_microbatch=True),
        PatchLevel(patch_targets=False, checkpoint_at_switch=False),
        PatchLevel(k=2, target_weights=[2, 1]),
    ],
)
def test_repr_rebuilds_the_algorithm(algorithm: PatchLevel) -> None:
    again = eval(repr(algorithm), {"PatchLevel": PatchLevel})  # as Composer does on loading
    assert repr(again) == repr(algorithm)
    public = [{n: v for n, v in vars(one).items() if not n.startswith("_")} for one in (again, algorithm)]
    assert public[0] == public[1]
    assert public[0].keys() == signature(PatchLevel).parameters.keys()


def test_trains_twice(tmp_path: Path) -> None:
    # The second fit continues the first: same clock, same switch.
    trainer = make_trainer(ROWS, [PatchLevel(k=4, ratio="4ba")], max_duration="2ba")
    with warned("switch at 4ba.*end of the run at 2ba"):
        trainer.fit()
    trainer.fit(duration="4ba")
    assert stages(trainer) == [0] * 4 + [1] * 2
    trainer.fit(duration="2ba")
    assert stages(trainer) == [0] * 4 + [1] * 4
    whole = run(ROWS, [PatchLevel(k=4, ratio="4ba")])
    # Composer starts its data loader anew in each fit, so only the first steps can be compared.
    assert metrics(trainer, "loss/train/total")[:2] == metrics(whole, "loss/train/total")[:2]


def test_finished_run_that_is_extended_stays_at_token_level(whole: Whole) -> None:
    with warned(r"4ba.*8ba"):
        extended = resume(whole[1], 8, PatchLevel(k=4, ratio=0.5), max_duration="16ba")
    assert stages(extended) == [1] * 8
    assert metrics(extended, "patch_level/compute_share")[-1] == pytest.approx(1 - 0.25 * 0.75)


def test_run_extended_in_the_patch_stage_switches_where_it_was_to(whole: Whole) -> None:
    with warned(r"4ba.*8ba"):
        extended = resume(whole[1], 2, PatchLevel(k=4, ratio=0.5), max_duration="16ba")
    assert stages(extended) == [0] * 2 + [1] * 12


def test_run_may_be_extended_in_another_unit(whole: Whole) -> None:
    with warned(r"4ba.*512tok"):
        extended = resume(whole[1], 2, PatchLevel(k=4, ratio=0.5), max_duration="1024tok")
    assert stages(extended) == [0] * 2 + [1] * 12


def test_weights_alone_start_a_fresh_run(whole: Whole) -> None:
    fresh = resume(whole[1], 8, PatchLevel(k=2, ratio=0.25), load_weights_only=True)
    assert stages(fresh) == [0] * 2 + [1] * 6
    assert metrics(fresh, "patch_level/k")[0] == 2


def test_checkpoint_without_the_algorithm_is_resumed_with_it(tmp_path: Path) -> None:
    run(ROWS, max_duration="2ba", **saving(tmp_path))
    with pytest.warns(UserWarning, match="PatchLevel is not in the state_dict"):
        trainer = resume(tmp_path, 2, PatchLevel(k=4, ratio=0.5))
    assert stages(trainer) == [0] * 2 + [1] * 4
    # Two of eight batches were patches: the first two were not.
    assert metrics(trainer, "patch_level/compute_share")[-1] == pytest.approx(1 - 0.25 * 0.75)


MISMATCHES: dict[str, dict[str, Any]] = {
    "k": {"k": 2},
    "point": {"ratio": 0.75},
    "unit of the point": {"ratio": "80sp"},
    "seq_len": {"seq_len": 8},
    "ratio 0": {"ratio": 0},
}


@pytest.mark.parametrize("change", MISMATCHES.values(), ids=MISMATCHES)
def test_mismatch_is_an_error_before_any_weight_changes(whole: Whole, change: dict[str, Any]) -> None:
    trainer = make_trainer(
        ROWS,
        [PatchLevel(**({"k": 4, "ratio": 0.5} | change))],
        load_path=str(whole[1] / "ba2.pt"),
    )
    before = weights(trainer)
    with pytest.raises(ValueError, match=r"k=4, switch at 4ba, seq_len=16.*on_mismatch"):
        trainer.fit()
    assert same(before.values(), weights(trainer).values())


@pytest.mark.parametrize("change", MISMATCHES.values(), ids=MISMATCHES)
def test_use_checkpoint_goes_on_as_if_nothing_had_changed(whole: Whole, change: dict[str, Any]) -> None:
    algorithm = PatchLevel(**({"k": 4, "ratio": 0.5, "on_mismatch": "use_checkpoint"} | change))
    resumed = resume(whole[1], 2, algorithm)
    for name in ("loss/train/total", "patch_level/stage", "patch_level/k", "patch_level/compute_share"):
        assert metrics(resumed, name) == metrics(whole[0], name)[2:]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"k": 2}, {"stage": [0, 0, 1, 1, 1, 1], "k": [2, 2, 1, 1, 1, 1]}),
        ({"ratio": 0.75}, {"stage": [0, 0, 0, 0, 1, 1], "k": [4, 4, 4, 4, 1, 1]}),
        ({"ratio": "13sp"}, {"stage": [0, 0, 1, 1, 1, 1], "k": [4, 4, 1, 1, 1, 1]}),
        ({"seq_len": 8}, {"stage": [0, 0, 1, 1, 1, 1], "positions_per_row": [4, 4, 8, 8, 8, 8]}),
        ({"ratio": 0}, {"stage": [0] * 6, "k": [1] * 6}),
    ],
    ids=str,
)
def test_use_config_takes_the_new_values(
    whole: Whole, change: dict[str, Any], expected: dict[str, list[int]]
) -> None:
    algorithm = PatchLevel(**({"k": 4, "ratio": 0.5, "on_mismatch": "use_config"} | change))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # ratio 0 has none from here on
        resumed = resume(whole[1], 2, algorithm)
    for name, values in expected.items():
        assert metrics(resumed, f"patch_level/{name}") == values, name


def test_compute_share_remembers_what_was_spent_under_another_k(whole: Whole) -> None:
    resumed = resume(whole[1], 2, PatchLevel(k=2, ratio=0.5, on_mismatch="use_config"))
    spent = [2 / 4 + 1 / 2, 2 / 4 + 2 / 2, *(2 / 4 + 2 / 2 + i for i in (1, 2, 3, 4))]
    shares = [positions / batch for positions, batch in zip(spent, range(3, 9), strict=True)]
    assert metrics(resumed, "patch_level/compute_share") == pytest.approx(shares)


def test_seq_len_of_the_checkpoint_holds_where_the_configuration_gives_none(tmp_path: Path) -> None:
    run(ROWS, [PatchLevel(k=2, ratio=0.5, seq_len=8)], **saving(tmp_path))
    resumed = resume(tmp_path, 2, PatchLevel(k=2, ratio=0.5))
    assert metrics(resumed, "patch_level/positions_per_row") == [8] * 6


def later_point(whole: Whole) -> Trainer:
    with warned("a stage is never entered again"):
        return resume(whole[1], 5, PatchLevel(k=4, ratio="7ba", on_mismatch="use_config"))


def reset_time(whole: Whole) -> Trainer:
    trainer = make_trainer(ROWS, [PatchLevel(k=4, ratio=0.5)], load_path=str(whole[1] / "ba5.pt"))
    with warned("a stage is never entered again"):
        trainer.fit(reset_time=True, duration="3ba")
    return trainer


def earlier_then_later_point(whole: Whole) -> Trainer:
    trainer = make_trainer(ROWS, [algorithm := PatchLevel(k=4, ratio="2ba")], max_duration="3ba")
    trainer.fit()
    assert algorithm.switch_point == "2ba"
    with warned("a stage is never entered again"):
        trainer.fit(duration="2ba", reset_time=True)
    return trainer


@pytest.mark.parametrize("way", [later_point, reset_time, earlier_then_later_point])
def test_stage_once_left_is_never_entered_again(whole: Whole, way: Callable[[Whole], Trainer]) -> None:
    trainer = way(whole)
    last = {"later_point": 3, "reset_time": 3, "earlier_then_later_point": 3}[way.__name__]
    assert stages(trainer)[-last:] == [1] * last


def test_fit_after_an_interrupted_fit_finds_everything_in_place() -> None:
    def interrupt(state: Any) -> None:
        if state.timestamp.batch == 1 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    interrupted: list[bool] = []
    watch = Watch(Event.AFTER_FORWARD, interrupt)
    trainer = make_trainer(ROWS, [PatchLevel(k=4, ratio="3ba")], callbacks=[watch], max_duration="6ba")
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.fit()
    assert stages(trainer) == [0, 0, 0, 1, 1, 1]
    assert len(metrics(trainer, "metrics/train/TokenAccuracy")) >= 3
    model: Any = trainer.state.model
    assert "loss" not in vars(model)
    assert not model.model.get_input_embeddings()._forward_hooks
    assert not model.model.get_input_embeddings()._forward_pre_hooks


def test_compute_share_starts_anew_with_the_clock() -> None:
    trainer = make_trainer(ROWS, [PatchLevel(k=4, ratio="8ba")], max_duration="3ba")
    with warned("ends as a patch model"):
        trainer.fit()
    with warned("ends as a patch model"):
        trainer.fit(duration="2ba", reset_time=True)
    assert metrics(trainer, "patch_level/compute_share") == pytest.approx([0.25] * 5)


def test_trained_algorithm_can_be_pickled() -> None:
    # Loggers and launchers do it; the hooks hold no module.
    trainer = run(ROWS, [algorithm := PatchLevel(k=4, ratio="1ba")], max_duration="2ba")
    assert pickle.loads(pickle.dumps(algorithm.state_dict())) == algorithm.state_dict()
    assert stages(trainer) == [0, 1]
