"""A patch step waits for its device once, after the backward; folding leaves pinned what was pinned.

Shapes: B rows, T raw tokens a row, P positions, K patch size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Event
from composer.models import ComposerModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

from patch_algorithm import PatchLevel
from patch_algorithm.algorithm.loss_metrics import LossTally
from patch_algorithm.common import step_sums
from patch_algorithm.common.step_sums import StepSums
from patch_algorithm.loss import patch_cross_entropy, target_weights
from patch_algorithm.model_access.flops import flop_counter
from patch_algorithm.monitoring.patch_monitor import PatchMonitor
from patch_algorithm.patching import batches, cut_rows, fold_rows, mean_of_patch, next_patch_targets
from patch_algorithm.patching.documents import documents_of, fold_documents
from tests.model_access.toys import Toy
from tests.runs.short import Watch, collate, make_model, make_rows, make_trainer, run

K = 4
# They look at the batch in the host's memory, before it goes to the device.
ON_THE_HOST = (
    "row_folding.py",
    "batch_checks.py",
    "batches.py",
    "documents.py",
    "rehearsal.py",
    "folded_ids.py",
)
READS = {
    "item",
    "tolist",
    "cpu",
    "numpy",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "nonzero",
    "is_nonzero",
}


class Reads(TorchFunctionMode):
    """Notes who of the package asks a tensor for its values, and in which file."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            name = "" if frame is None else frame.f_code.co_filename
            if "/patch_algorithm/" in name and not name.endswith(ON_THE_HOST):
                self.files.append(name.rpartition("/")[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("microbatch", [4, 1])
@pytest.mark.parametrize("callbacks", [[], [PatchMonitor]], ids=["alone", "with the monitor"])
def test_a_patch_step_is_read_once_at_its_end(microbatch: int, callbacks: list[Any]) -> None:
    at_backward: list[int] = []
    watch = Watch(Event.BEFORE_BACKWARD, lambda state: at_backward.append(len(reads.files)))
    trainer = make_trainer(
        make_rows(16, 32),
        [PatchLevel(k=K, ratio="4ba", rehearse_switch=False)],
        max_duration="5ba",
        device_train_microbatch_size=microbatch,
        callbacks=[watch, *(made() for made in callbacks)],
    )
    with Reads() as reads:
        trainer.fit()
    assert reads.files == ["step_sums.py"] * 4
    assert at_backward[: 4 // microbatch] == [0] * (4 // microbatch)


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Says that there are two ranks, one of which does nothing; holds how many numbers each sum was of."""
    sizes: list[int] = []
    two = SimpleNamespace(get_world_size=lambda: 2, all_reduce=lambda t, **_: sizes.append(t.numel()))
    monkeypatch.setattr(step_sums, "dist", two)
    return sizes


def test_several_ranks_add_up_everything_at_once_and_read_it_once(reduced: list[int]) -> None:
    sums = StepSums(torch.device("cpu"))
    sums.put("recorder", (12.0, 3.5e15 + 1))
    sums.put("loss", torch.tensor([1.0, 2.0, 3.0]))
    with Reads() as reads:
        assert sums.take("loss") == [1.0, 2.0, 3.0]
        assert sums.take("recorder") == [12.0, 3.5e15 + 1]
    assert reads.files == ["step_sums.py"]
    assert reduced == [5]


def test_the_loss_and_the_monitor_share_one_collective_and_one_read(reduced: list[int]) -> None:
    trainer = make_trainer(
        make_rows(16, 32),
        [PatchLevel(k=K, ratio="3ba", rehearse_switch=False)],
        max_duration="5ba",
        callbacks=[PatchMonitor()],
    )
    with Reads() as reads:
        trainer.fit()
    assert reads.files == ["step_sums.py"] * 5
    assert reduced == [6, 6, 6, 2, 2]  # four of the loss, two of the monitor; after the switch those alone


def test_one_rank_without_patches_reads_nothing() -> None:
    trainer = make_trainer(make_rows(8, 32), callbacks=[PatchMonitor()], max_duration="2ba")
    with Reads() as reads:
        trainer.fit()
    assert reads.files == []


def on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


@contextmanager
def patch_step(model: ComposerModel, **changes: Any) -> Iterator[tuple[Trainer, Any]]:
    """A trainer in its patch stage whose model and folded batch are on the meta device."""
    algorithm = PatchLevel(k=K, ratio="2ba", **changes)
    trainer = make_trainer(make_rows(8, 32), [algorithm], max_duration="3ba", model=model)
    state = trainer.state
    trainer.engine.run_event(Event.FIT_START)
    state.batch = collate(make_rows(4, 32))
    trainer.engine.run_event(Event.AFTER_DATALOADER)
    state.model.to("meta")
    state.batch = {key: on_meta(value) for key, value in state.batch.items()}
    yield trainer, state
    trainer.close()


@pytest.mark.parametrize("weights", ["uniform", "inverse"])
def test_a_whole_step_runs_where_values_cannot_be_read(weights: str) -> None:
    """Of a model that asks for nothing else: MPT and Llama want an autocast dtype, which meta has not."""
    with patch_step(Toy(), target_weights=weights, rehearse_switch=False) as (trainer, state):
        run_event = trainer.engine.run_event
        state.model.train()
        for event in (Event.BATCH_START, Event.BEFORE_TRAIN_BATCH, Event.BEFORE_FORWARD):
            run_event(event)
        state.outputs = state.model(state.batch)
        run_event(Event.AFTER_FORWARD)
        run_event(Event.BEFORE_LOSS)
        loss = state.model.loss(state.outputs, state.batch)
        for event in (Event.AFTER_LOSS, Event.BEFORE_BACKWARD):
            run_event(event)
        loss.backward()
        run_event(Event.AFTER_BACKWARD)
        assert all(parameter.grad is not None for parameter in state.model.parameters())
        # The one read of the first step of a fit that comes before weights change.
        with pytest.raises((RuntimeError, NotImplementedError)):
            run_event(Event.AFTER_TRAIN_BATCH)
        with pytest.raises((RuntimeError, NotImplementedError)):
            run_event(Event.BATCH_END)


def test_reading_a_meta_tensor_is_an_error() -> None:
    """What the tests above and below rest on."""
    for read in (Tensor.item, Tensor.tolist, bool, float):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(torch.ones((), device="meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pure_parts_read_nothing(dtype: torch.dtype) -> None:
    ids_BT = torch.zeros(2, 32, dtype=torch.int64, device="meta")
    mask_BT = torch.ones_like(ids_BT)
    assert cut_rows(ids_BT, 8).shape == (8, 8)
    documents_BT = documents_of({"sequence_id": ids_BT, "attention_mask": mask_BT}, ("sequence_id",))
    assert documents_BT is not None
    documents = fold_documents(fold_rows(documents_BT, K))
    embeds_BPKD = torch.zeros(2, 8, K, 16, dtype=dtype, device="meta", requires_grad=True)
    assert mean_of_patch(embeds_BPKD, documents.mask_BPK).shape == (2, 8, 16)
    logits_BPV = torch.zeros(2, 8, 50, dtype=dtype, device="meta", requires_grad=True)
    weights_K = target_weights(K, "inverse", torch.device("meta"))
    loss = patch_cross_entropy(logits_BPV, next_patch_targets(ids_BT, K), weights=weights_K)
    loss.mean.backward()
    LossTally().add(loss)
    assert logits_BPV.grad is not None


PINNED: set[int] = set()


class SaysItIsPinned:
    """Stands for CUDA's pinned memory, which this machine need not have."""

    @staticmethod
    def is_pinned(tensor: Tensor, *_: Any) -> bool:
        return tensor.untyped_storage().data_ptr() in PINNED

    @staticmethod
    def pin_memory(tensor: Tensor, *_: Any) -> Tensor:
        copied = tensor.clone()
        KEPT.append(copied)  # so that no later tensor comes to lie where it was
        PINNED.add(copied.untyped_storage().data_ptr())
        return copied


KEPT: list[Tensor] = []


@pytest.fixture
def fake_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    PINNED.clear()
    monkeypatch.setattr(Tensor, "is_pinned", SaysItIsPinned.is_pinned)
    monkeypatch.setattr(Tensor, "pin_memory", SaysItIsPinned.pin_memory)
    yield
    PINNED.clear()
    KEPT.clear()


def folded_by_a_run(pinned: bool, T: int) -> list[dict[str, Any]]:
    """The batches that the trainer has in two patch steps and a token step."""
    seen: list[dict[str, Any]] = []

    def load(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        mask_BT = torch.ones_like(batch["input_ids"])
        batch = {**batch, "attention_mask": mask_BT}
        return {k: v.pin_memory() if pinned and isinstance(v, Tensor) else v for k, v in batch.items()}

    run(
        make_rows(12, T),
        [PatchLevel(k=K, ratio="2ba", seq_len=8, rehearse_switch=False)],
        max_duration="3ba",
        collate_fn=load,
        callbacks=[Watch(Event.BATCH_START, lambda state: seen.append(state.batch))],
    )
    return seen


@pytest.mark.parametrize("T", [32, 64])
@pytest.mark.usefixtures("fake_pinned_memory")
def test_what_was_pinned_stays_pinned(T: int) -> None:
    for batch in folded_by_a_run(pinned=True, T=T):
        pageable = [k for k, v in batch.items() if isinstance(v, Tensor) and not v.is_pinned()]
        assert pageable == []


@pytest.mark.usefixtures("fake_pinned_memory")
def test_nothing_is_pinned_where_nothing_was() -> None:
    folded_by_a_run(pinned=False, T=64)
    assert not PINNED


def test_a_pad_by_nothing_copies_nothing() -> None:
    batch = collate(make_rows(2, 32))
    folded = batches.fold_batch(batch, K)
    assert folded[batches.PATCH_IDS].data_ptr() == batch["input_ids"].data_ptr()


def test_flops_are_counted_from_shapes_alone() -> None:
    count = flop_counter(make_model())
    assert count is not None
    assert count({"input_ids": torch.zeros(2, 8, dtype=torch.int64, device="meta")}) > 0
