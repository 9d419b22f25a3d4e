"""Cutting and folding against plain lists, and what a folded batch promises to the trainer.

Shapes: B rows, T tokens a row, K patch size, P positions, D hidden size.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from composer.core.data_spec import default_split_batch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patch_algorithm.loss import patch_cross_entropy
from patch_algorithm.patching import (
    PATCH_IDS,
    PATCH_MASK,
    PATCH_TARGETS,
    cut_batch,
    cut_rows,
    fold_batch,
    fold_rows,
    mean_of_patch,
    next_patch_targets,
)
from tests.oracle import IGNORED, patches, random_labels, random_logits

seeds = st.integers(0, 2**31)
patch_sizes = st.sampled_from([1, 2, 3, 4, 8])
rows_in_batch = st.integers(1, 4)


def make_batch(seed: int, B: int, T: int, padding: str = "none") -> dict[str, Any]:
    """A batch as llm-foundry collates it; rows are padded where ``padding`` says so."""
    ids_BT = random_labels(seed, (B, T), V=1000, ignored=0) + 1
    hidden_BT = random_labels(seed + 1, (B, T), V=2, ignored=0.2) == IGNORED
    batch: dict[str, Any] = {
        "input_ids": ids_BT,
        "labels": ids_BT.masked_fill(hidden_BT, IGNORED),
        "total_tokens": [T] * B,
        "loss_generating_tokens": [T - 1] * B,
    }
    if padding != "none":
        real_B1 = random_labels(seed + 2, (B, 1), V=T, ignored=0) + 1
        mask_BT = torch.arange(T).expand(B, T) < real_B1
        if padding == "left":
            mask_BT = mask_BT.flip(1)
        if padding == "holes":
            mask_BT = random_labels(seed + 2, (B, T), V=2, ignored=0) == 1
        batch["attention_mask"] = mask_BT.long()
        batch["labels"] = batch["labels"].masked_fill(~mask_BT, IGNORED)
        batch["total_tokens"] = mask_BT.sum(dim=1).tolist()
    return batch


def expected_fold(batch: dict[str, Any], k: int) -> dict[str, list[Any]]:
    """What folding means, said with lists: one patch after the other, the last one filled up."""
    out: dict[str, list[Any]] = {"ids": [], "mask": [], "targets": [], "scored": []}
    ids, labels = batch["input_ids"].tolist(), batch["labels"].tolist()
    masks = batch["attention_mask"].tolist() if "attention_mask" in batch else None
    for index, row in enumerate(ids):
        real = masks[index] if masks is not None else [1] * len(row)
        missing = -len(row) % k
        kept = patches([*real, *[0] * missing], k)
        following = [*patches([*labels[index], *[IGNORED] * missing], k)[1:], [IGNORED] * k]
        targets = [
            list(patch) if any(own) else [IGNORED] * k for patch, own in zip(following, kept, strict=True)
        ]
        out["ids"].append(patches([*row, *[0] * missing], k))
        out["mask"].append(kept)
        out["targets"].append(targets)
        out["scored"].append(sum(t != IGNORED for patch in targets for t in patch))
    return out


@given(seed=seeds, B=rows_in_batch, pieces=st.integers(1, 5), length=st.integers(1, 9))
def test_cutting_loses_and_reorders_nothing(seed: int, B: int, pieces: int, length: int) -> None:
    rows_BT = random_labels(seed, (B, pieces * length), V=99, ignored=0)
    cut = cut_rows(rows_BT, length)
    assert cut.shape == (B * pieces, length)
    assert torch.equal(cut.flatten(), rows_BT.flatten())
    vectors = torch.stack([rows_BT, -rows_BT], dim=-1)
    assert torch.equal(cut_rows(vectors, length)[..., 1], -cut)


@given(seed=seeds, B=rows_in_batch, P=st.integers(1, 6), k=patch_sizes)
def test_folding_loses_and_reorders_nothing(seed: int, B: int, P: int, k: int) -> None:
    rows_BT = random_labels(seed, (B, P * k), V=99, ignored=0)
    ids_BPK = fold_rows(rows_BT, k)
    assert ids_BPK.shape == (B, P, k)
    assert ids_BPK.tolist() == [patches(row, k) for row in rows_BT.tolist()]


@given(seed=seeds, B=rows_in_batch, P=st.integers(1, 6), k=patch_sizes)
def test_targets_are_the_next_patch(seed: int, B: int, P: int, k: int) -> None:
    labels_BT = random_labels(seed, (B, P * k), V=99, ignored=0.2)
    before = labels_BT.clone()
    targets_BPK = next_patch_targets(labels_BT, k, ignore_index=-7)
    for row, targets in zip(labels_BT.tolist(), targets_BPK.tolist(), strict=True):
        assert targets == [*patches(row, k)[1:], [-7] * k]
    assert torch.equal(labels_BT, before)


def test_targets_of_one_token_are_the_shifted_labels() -> None:
    labels_BT = torch.tensor([[5, 6, IGNORED, 8]])
    assert next_patch_targets(labels_BT, 1)[..., 0].tolist() == [[6, IGNORED, 8, IGNORED]]


@given(
    seed=seeds,
    B=rows_in_batch,
    T=st.integers(1, 30),
    k=patch_sizes,
    padding=st.sampled_from(["none", "left", "right", "holes"]),
)
def test_a_folded_batch_is_what_the_lists_say(seed: int, B: int, T: int, k: int, padding: str) -> None:
    if padding == "none":
        T = T * k
    batch = make_batch(seed, B, T, padding)
    before = copy.deepcopy(batch)
    folded, expected = fold_batch(batch, k), expected_fold(batch, k)

    assert folded[PATCH_IDS].tolist() == expected["ids"]
    assert folded[PATCH_TARGETS].tolist() == expected["targets"]
    assert folded["input_ids"].tolist() == [[patch[0] for patch in row] for row in expected["ids"]]
    assert folded["loss_generating_tokens"] == expected["scored"]
    assert folded["total_tokens"] == before["total_tokens"]
    assert "labels" not in folded
    if padding == "none":
        assert "attention_mask" not in folded
        assert PATCH_MASK not in folded
    else:
        assert folded[PATCH_MASK].tolist() == expected["mask"]
        real = [[int(any(patch)) for patch in row] for row in expected["mask"]]
        assert folded["attention_mask"].tolist() == real
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], before[key]) for key in ("input_ids", "labels"))


def test_right_padding_to_full_patches_by_hand() -> None:
    batch = {
        "input_ids": torch.tensor([[11, 12, 13, 14, 15], [21, 22, 9, 9, 9]]),
        "labels": torch.tensor([[11, 12, 13, 14, 15], [21, 22, -100, -100, -100]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
    }
    folded = fold_batch(batch, 2)
    assert folded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert folded[PATCH_TARGETS].tolist() == [
        [[13, 14], [15, -100], [-100, -100]],
        [[-100, -100], [-100, -100], [-100, -100]],
    ]
    assert folded["total_tokens"] == [5, 2]
    assert folded["loss_generating_tokens"] == [3, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.uint8], ids=str)
def test_a_mask_of_another_dtype_means_the_same(dtype: torch.dtype) -> None:
    batch = make_batch(3, 3, 11, "right")
    expected = fold_batch(batch, 4)
    folded = fold_batch(batch | {"attention_mask": batch["attention_mask"].to(dtype)}, 4)
    assert torch.equal(folded[PATCH_TARGETS], expected[PATCH_TARGETS])
    assert folded["attention_mask"].tolist() == expected["attention_mask"].tolist()
    assert folded["total_tokens"] == expected["total_tokens"]


@pytest.mark.parametrize(
    ("cut_or_fold", "numbers"),
    [
        (lambda rows: cut_rows(rows, 4), ("10", "4")),
        (lambda rows: fold_rows(rows, 3), ("10", "3")),
        (lambda rows: next_patch_targets(rows, 3), ("10", "3")),
        (lambda rows: fold_batch({"input_ids": rows, "labels": rows}, 3), ("10", "3")),
        (lambda rows: cut_batch({"input_ids": rows, "labels": rows}, 20), ("10", "20")),
    ],
)
def test_rows_of_another_length_are_refused_with_both_numbers(
    cut_or_fold: Any, numbers: tuple[str, str]
) -> None:
    with pytest.raises(ValueError, match=rf"\b{numbers[0]}\b.*\b{numbers[1]}\b"):
        cut_or_fold(torch.arange(20).view(2, 10))


@pytest.mark.parametrize("size", [0, -2])
@pytest.mark.parametrize("function", [cut_rows, fold_rows, next_patch_targets])
def test_a_size_below_one_is_refused(function: Any, size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        function(torch.arange(8).view(2, 4), size)


def test_a_value_per_token_that_nobody_knows_is_refused_by_name() -> None:
    batch = make_batch(1, 2, 8) | {"token_type_ids": torch.zeros(2, 8, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"'token_type_ids'.*\(2, 8\)"):
        fold_batch(batch, 4)


def test_folding_keeps_values_per_row_and_drops_documents() -> None:
    batch = make_batch(1, 2, 8) | {
        "sequence_id": torch.zeros(2, 8, dtype=torch.int64),
        "position_ids": torch.arange(8).expand(2, 8),
        "weight": torch.tensor([1.0, 2.0]),
        "source": ["a", "b"],
        "step": 3,
    }
    folded = fold_batch(batch, 4)
    assert {"sequence_id", "position_ids"}.isdisjoint(folded)
    assert folded["weight"] is batch["weight"]
    assert (folded["source"], folded["step"]) == (["a", "b"], 3)


@given(
    seed=seeds,
    B=rows_in_batch,
    pieces=st.integers(1, 4),
    length=st.integers(1, 8),
    padding=st.sampled_from(["none", "right", "left"]),
)
def test_a_cut_batch_keeps_everything_aligned(
    seed: int, B: int, pieces: int, length: int, padding: str
) -> None:
    T = pieces * length
    batch = make_batch(seed, B, T, padding)
    batch["position_in_text"] = torch.arange(T).expand(B, T)
    batch["row"] = torch.arange(B)
    batch["name"] = [f"row {index}" for index in range(B)]
    cut = cut_batch(batch, length)

    assert cut["input_ids"].shape == (B * pieces, length)
    for key in ("input_ids", "labels", "position_in_text"):
        assert torch.equal(cut[key].reshape(B, T), batch[key])
    real = batch.get("attention_mask", torch.ones(B, T, dtype=torch.int64)).reshape(-1, length)
    if "attention_mask" in batch:
        # A piece that is nothing but padding keeps its first token, or models refuse it.
        expected = [row if any(row) else [1] + [0] * (length - 1) for row in real.tolist()]
        assert cut["attention_mask"].tolist() == expected
    assert cut["row"].tolist() == [row for row in range(B) for _ in range(pieces)]
    assert cut["name"] == [f"row {row}" for row in range(B) for _ in range(pieces)]
    assert sum(cut["total_tokens"]) == sum(batch["total_tokens"])
    assert cut["total_tokens"] == real.sum(dim=1).tolist()
    scored = [sum(label != IGNORED for label in row[1:]) for row in cut["labels"].tolist()]
    assert cut["loss_generating_tokens"] == scored


def test_cutting_does_not_invent_counts() -> None:
    rows = torch.arange(8).view(1, 8)
    assert cut_batch({"input_ids": rows, "labels": rows}, 4).keys() == {"input_ids", "labels"}


@pytest.mark.parametrize("padding", ["none", "right", "holes"])
@pytest.mark.parametrize("microbatch", [1, 2, 4, 5])
def test_composer_splits_a_folded_batch_into_aligned_microbatches(microbatch: int, padding: str) -> None:
    folded = fold_batch(make_batch(5, 5, 24, padding), 4)
    logits_BPV = random_logits(6, 5, 6, 1001)
    whole = patch_cross_entropy(logits_BPV, folded[PATCH_TARGETS])
    parts = default_split_batch(folded, microbatch)
    total = torch.zeros((), dtype=torch.float64)
    for part, logits in zip(parts, logits_BPV.split(microbatch), strict=True):
        loss = patch_cross_entropy(logits, part[PATCH_TARGETS])
        assert int(loss.count) == sum(part["loss_generating_tokens"])
        total = total + loss.sum
    torch.testing.assert_close(total, whole.sum, rtol=1e-12, atol=0)
    for key, value in folded.items():
        joined = [part[key] for part in parts]
        if isinstance(value, Tensor):
            assert torch.equal(torch.cat(joined), value)
        else:
            assert [entry for part in joined for entry in part] == value


def test_cut_then_folded_rows_are_the_rows_of_the_data_set() -> None:
    k, L = 2, 3
    batch = make_batch(7, 2, 4 * k * L)
    folded = fold_batch(cut_batch(batch, k * L), k)
    assert folded["input_ids"].shape == (8, L)
    assert torch.equal(folded[PATCH_IDS].reshape(2, -1), batch["input_ids"])
    assert sum(folded["total_tokens"]) == batch["input_ids"].numel()


@given(seed=seeds, k=st.sampled_from([2, 3, 8]), data=st.data(), masked=st.booleans())
def test_the_order_of_the_tokens_in_a_patch_is_irrelevant(
    seed: int, k: int, data: st.DataObject, masked: bool
) -> None:
    embeds_BPKD = random_logits(seed, 2, 3, k, 5).detach()
    mask_BPK = random_labels(seed + 1, (2, 3, k), V=2, ignored=0) if masked else None
    order = data.draw(st.permutations(range(k)))
    shuffled = None if mask_BPK is None else mask_BPK[..., order]
    torch.testing.assert_close(
        mean_of_patch(embeds_BPKD[:, :, order], shuffled),
        mean_of_patch(embeds_BPKD, mask_BPK),
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_mean_is_accumulated_in_float32(dtype: torch.dtype, masked: bool) -> None:
    embeds_BPKD = random_logits(2, 4, 5, 8, 33, dtype=dtype).detach()
    mask_BPK = random_labels(3, (4, 5, 8), V=2, ignored=0) if masked else torch.ones(4, 5, 8)
    exact_BPKD = embeds_BPKD.double() * mask_BPK[..., None]
    exact_BPD = exact_BPKD.sum(dim=2) / mask_BPK.sum(dim=-1, keepdim=True).clamp(min=1)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            mean_BPD = mean_of_patch(embeds_BPKD, mask_BPK if masked else None)
        assert mean_BPD.dtype is dtype
        torch.testing.assert_close(
            mean_BPD.double(), exact_BPD, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6
        )


def test_only_real_tokens_are_averaged() -> None:
    embeds_BPKD = torch.tensor([[[[2.0], [4.0]], [[6.0], [1e30]], [[5.0], [5.0]]]])
    mask_BPK = torch.tensor([[[1, 1], [1, 0], [0, 0]]])
    for mask in (mask_BPK, mask_BPK.bool(), mask_BPK.float()):
        assert mean_of_patch(embeds_BPKD, mask).tolist() == [[[3.0], [6.0], [0.0]]]
