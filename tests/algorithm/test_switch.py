"""What happens at the switch: optimizer state, checkpoints, microbatches, and its rehearsal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from torch import nn

from patch_algorithm import PatchLevel
from patch_algorithm.algorithm import patch_run
from patch_algorithm.algorithm.optimizer_reset import reset_moments
from patch_algorithm.algorithm.rehearsal import RehearsalError
from tests.runs.short import (
    Watch,
    make_model,
    make_padded_rows,
    make_rows,
    make_trainer,
    optimizer_tensors,
    run,
    same,
    saving,
    warned,
)
from tests.support import metrics, weights

ROWS = make_rows(32, 16)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "SGD, dampened": {"momentum": 0.9, "dampening": 0.5},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adagrad": {"initial_accumulator_value": 0.3},
    "Adadelta": {},
    "ASGD": {},
    "Rprop": {},
}


def take_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_optimizer_steps_as_a_fresh_one(name: str) -> None:
    kind = getattr(torch.optim, name.partition(",")[0])

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        first, *others = parameters
        return kind([{"params": first}, {"params": others, "lr": 0.02}], lr=0.01, **OPTIMIZERS[name])

    parameters = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(4))]
    optimizer = make(parameters)
    take_steps(optimizer, parameters, seed=0)
    keys = {p: list(state) for p, state in optimizer.state.items()}
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    reset_moments(optimizer)
    assert {p: list(state) for p, state in optimizer.state.items()} == keys
    after = [value for state in optimizer.state.values() for value in state.values()]
    kept = [(a, b) for a, b in zip(after, tensors, strict=True) if isinstance(a, torch.Tensor)]
    assert all(a is b for a, b in kept), "in place"
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    fresh = make(copies)
    take_steps(optimizer, parameters, seed=1)
    take_steps(fresh, copies, seed=1)
    assert same(parameters, copies)


class Damped(torch.optim.SGD):
    """SGD that adds half of a gradient to its momentum, but begins with a whole one."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr, momentum=0.9, dampening=0.5)


def test_reset_without_momentum_survives_a_checkpoint(tmp_path: Path) -> None:
    patch = {"k": 4, "ratio": "3ba", "on_switch": "reset"}
    whole = run(ROWS, [PatchLevel(**patch)], optimizer=Damped, **saving(tmp_path))
    saved = torch.load(tmp_path / "ba3.pt", weights_only=False)["state"]
    model = make_model()
    model.load_state_dict(saved["model"])
    plain = run(ROWS[12:], [], model=model, optimizer=Damped, max_duration="5ba")
    again = run(ROWS, [PatchLevel(**patch)], optimizer=Damped, load_path=str(tmp_path / "ba3.pt"))
    for trainer in (plain, again):
        assert same(weights(trainer).values(), weights(whole).values())
        assert same(optimizer_tensors(trainer), optimizer_tensors(whole))


def test_dampening_is_not_reset_where_its_state_is_sharded() -> None:
    parameter = nn.Parameter(torch.ones(4))
    optimizer = Damped([parameter], lr=0.1)
    take_steps(optimizer, [parameter], seed=0)
    parameter._fsdp_flattened = True  # pyright: ignore
    with pytest.raises(ValueError, match=r"Damped with dampening=0\.5.*Set dampening to 0"):
        reset_moments(optimizer)


def test_reset_run_is_that_of_a_fresh_optimizer_from_the_switch(tmp_path: Path) -> None:
    whole = run(ROWS, [PatchLevel(k=4, ratio="3ba", on_switch="reset")], **saving(tmp_path))
    # The checkpoint of the last patch step holds the reset state already.
    saved = torch.load(tmp_path / "ba3.pt", weights_only=False)["state"]
    moments = [t for s in dict(saved["optimizers"])["AdamW"]["state"].values() for t in s.values()]
    assert moments
    assert all(bool((tensor == 0).all()) for tensor in moments)
    model = make_model()
    model.load_state_dict(saved["model"])
    plain = run(ROWS[12:], [], model=model, max_duration="5ba")
    assert metrics(plain, "loss/train/total") == metrics(whole, "loss/train/total")[3:]
    assert same(weights(plain).values(), weights(whole).values())


def test_carried_state_is_not_touched(tmp_path: Path) -> None:
    run(ROWS, [PatchLevel(k=4, ratio="3ba")], **saving(tmp_path))
    saved = torch.load(tmp_path / "ba3.pt", weights_only=False)["state"]
    steps = [float(s["step"]) for s in dict(saved["optimizers"])["AdamW"]["state"].values()]
    assert set(steps) == {3.0}


@pytest.mark.parametrize("batch", [3, 5])
def test_resumed_run_does_not_reset_again(tmp_path: Path, batch: int) -> None:
    patch = {"k": 4, "ratio": "3ba", "on_switch": "reset"}
    whole = run(ROWS, [PatchLevel(**patch)], **saving(tmp_path))
    again = run(ROWS, [PatchLevel(**patch)], load_path=str(tmp_path / f"ba{batch}.pt"))
    assert metrics(again, "loss/train/total") == metrics(whole, "loss/train/total")[batch:]
    assert same(optimizer_tensors(again), optimizer_tensors(whole))


def test_new_run_from_weights_alone_resets_nothing_before_its_own_switch(tmp_path: Path) -> None:
    patch = {"k": 4, "ratio": "3ba", "on_switch": "reset"}
    run(ROWS, [PatchLevel(**patch)], **saving(tmp_path))
    load = {"load_path": str(tmp_path / "ba5.pt"), "load_weights_only": True}
    again = run(ROWS, [PatchLevel(**patch)], max_duration="6ba", **load)
    assert metrics(again, "patch_level/stage") == [0, 0, 0, 1, 1, 1]


class Recorded:
    """State that is neither a tensor nor a number."""


class Odd(torch.optim.AdamW):
    """Keeps an object of its own for each parameter, as llm-foundry's adaptive Lions do."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for state in self.state.values():
            state["recorded"] = Recorded()
        return result


def test_state_that_cannot_be_reset_is_refused_at_the_first_step() -> None:
    trainer = make_trainer(ROWS, [PatchLevel(k=4, ratio="3ba", on_switch="reset")], optimizer=Odd)
    with pytest.raises(ValueError, match=r"'recorded' of Odd.*on_switch='carry'"):
        trainer.fit()
    assert trainer.state.timestamp.batch == 1
    run(ROWS, [PatchLevel(k=4, ratio="3ba")], optimizer=Odd)


def test_optimizers_are_looked_through_once_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    monkeypatch.setattr(patch_run, "refuse_unresettable", looked.append)
    trainer = make_trainer(ROWS, [PatchLevel(k=4, ratio="5ba", on_switch="reset")], max_duration="3ba")
    with warned("ends as a patch model"):
        trainer.fit()
    assert looked == list(trainer.state.optimizers)
    trainer.fit(duration="3ba")
    assert looked == list(trainer.state.optimizers) * 2


def saved_batches(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("ba")) for path in folder.glob("ba*.pt"))


@pytest.mark.parametrize(
    ("asked", "batches"), [(True, [2, 4, 5, 8]), (False, [4, 8])], ids=["at the switch", "not asked"]
)
def test_checkpoint_at_every_boundary(tmp_path: Path, asked: bool, batches: list[int]) -> None:
    folder = {"save_folder": str(tmp_path), "save_interval": "4ba", "save_filename": "ba{batch}.pt"}
    stages = [{"k": 8, "until": "2ba"}, {"k": 4, "until": "5ba"}]
    trainer = run(ROWS, [PatchLevel(stages=stages, checkpoint_at_switch=asked)], **folder)
    assert saved_batches(tmp_path) == batches
    (saver,) = (c for c in trainer.state.callbacks if isinstance(c, CheckpointSaver))
    assert "or_at_switch" not in repr(saver.save_interval), "the saver has its own interval back"


def test_autoresume_finds_the_checkpoint_of_the_switch(tmp_path: Path) -> None:
    folder = {"save_folder": str(tmp_path), "save_interval": "100ba", "run_name": "one", "autoresume": True}

    def die(state: State) -> None:
        if state.timestamp.batch == 4:
            raise KeyboardInterrupt

    trainer = make_trainer(
        ROWS, [PatchLevel(k=4, ratio="3ba")], callbacks=[Watch(Event.BATCH_START, die)], **folder
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.close()
    whole = run(ROWS, [PatchLevel(k=4, ratio="3ba")])
    again = run(ROWS, [PatchLevel(k=4, ratio="3ba")], **folder)
    assert metrics(again, "loss/train/total") == metrics(whole, "loss/train/total")[3:]


def test_microbatches_grow_in_the_patch_stage_and_return() -> None:
    rows: list[int] = []
    watch = Watch(Event.BEFORE_FORWARD, lambda state: rows.append(len(state.batch["input_ids"])))
    runs = {
        scale: run(
            ROWS,
            [PatchLevel(k=2, ratio="2ba", scale_microbatch=scale)],
            callbacks=[watch] if scale else [],
            device_train_microbatch_size=1,
            max_duration="3ba",
            optimizer=torch.optim.SGD,
        )
        for scale in (True, False)
    }
    assert rows == [2, 2] * 2 + [1, 1, 1, 1]
    assert runs[True].state.device_train_microbatch_size == 1
    losses = [metrics(runs[scale], "loss/train/total") for scale in (True, False)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_microbatches_stay_where_positions_do() -> None:
    # Rows of k * seq_len tokens have as many positions in both stages.
    sizes: set[Any] = set()
    watch = Watch(Event.BEFORE_FORWARD, lambda state: sizes.add(state.device_train_microbatch_size))
    run(
        ROWS,
        [PatchLevel(k=2, ratio="2ba", scale_microbatch=True)],
        model=make_model(max_seq_len=8),
        callbacks=[watch],
        device_train_microbatch_size=2,
    )
    assert sizes == {2}


class Rehearsed(nn.Module):
    """A buffer that every training forward changes, as statistics of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return hidden


@pytest.mark.parametrize("microbatch", [1, 4])
def test_rehearsal_leaves_no_trace(microbatch: int) -> None:
    def model() -> Any:
        made: Any = make_model(resid_pdrop=0.1)
        made.model.transformer.norm_f.add_module("counter", Rehearsed())
        made.model.transformer.norm_f.register_forward_hook(lambda module, _, out: module.counter(out))
        return made

    lengths: list[list[int]] = [[], []]
    trainers = []
    for seen, rehearse in zip(lengths, (True, False), strict=True):
        made = model()
        made.model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].shape[1])
        )
        trainers.append(
            run(
                make_padded_rows(32, 16),
                [PatchLevel(k=4, ratio="2ba", rehearse_switch=rehearse)],
                model=made,
                device_train_microbatch_size=microbatch,
            )
        )
    passes = 1 if microbatch == 4 else 2  # gradients accumulate where there are several microbatches
    # The tied embedding is called a second time in each pass, for the logits.
    assert lengths[0][: 2 * passes] == [16] * 2 * passes, "rehearsed at token level"
    assert len(lengths[0]) == len(lengths[1]) + 2 * passes
    assert lengths[0][len(lengths[0]) - len(lengths[1]) :] == lengths[1]
    assert metrics(trainers[0], "loss/train/total") == metrics(trainers[1], "loss/train/total")
    assert same(weights(trainers[0]).values(), weights(trainers[1]).values())
    assert same(optimizer_tensors(trainers[0]), optimizer_tensors(trainers[1]))


def test_no_rehearsal_where_positions_do_not_grow() -> None:
    passes: list[int] = []
    model = make_model(max_seq_len=4)
    model.model.get_input_embeddings().register_forward_pre_hook(lambda *_: passes.append(1))  # pyright: ignore
    trainer = make_trainer(ROWS, [PatchLevel(k=4, ratio="1ba")], model=model, max_duration="2ba")
    trainer.fit()
    # One lookup for each microbatch, and one for the logits of the tied embedding.
    assert len(passes) == 2 * 1 + 2 * 4


class TooLong(nn.Module):
    """Runs out of memory on token-level rows."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[1] == 16:
            raise self.error
        return hidden


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_running_out_of_memory_in_the_rehearsal_says_what_to_lower(error: BaseException) -> None:
    model: Any = make_model()
    model.model.transformer.norm_f.register_forward_hook(lambda _, __, out: TooLong(error)(out))
    before = weights_of(model)
    trainer = make_trainer(ROWS, [PatchLevel(k=4, ratio="4ba")], model=model, device_train_microbatch_size=2)
    with pytest.raises(RehearsalError, match=r"2 rows of 16 positions.*device_train_microbatch_size below 2"):
        trainer.fit()
    assert trainer.state.timestamp.batch == 0
    assert same(weights_of(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_errors_of_the_rehearsal_are_their_own() -> None:
    model: Any = make_model()
    bug = RuntimeError("a bug of the model")
    model.model.transformer.norm_f.register_forward_hook(lambda _, __, out: TooLong(bug)(out))
    with pytest.raises(RuntimeError, match="a bug of the model"):
        run(ROWS, [PatchLevel(k=4, ratio="4ba")], model=model)


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]
