"""Weighted targets against a plain float64 loop, and patches on one side of the model alone.

Shapes: B rows, T tokens a row, N positions, P positions a row, K targets per position, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from patch_algorithm.loss import TARGET_WEIGHTS, chunked, patch_cross_entropy, target_weights
from patch_algorithm.patching import (
    PATCH_IDS,
    PATCH_MASK,
    PATCH_TARGETS,
    fold_batch,
    next_patch_targets,
    next_tokens_targets,
)
from tests.oracle import IGNORED, naive_loss, random_labels, random_logits, relative_difference

SAME = 1e-10

seeds = st.integers(0, 2**31)
patch_sizes = st.sampled_from([1, 2, 3, 5, 8])
shares_ignored = st.sampled_from([0.0, 0.3, 0.9, 1.0])


def weighted_loss(logits_NV: Tensor, targets_NK: Tensor, weights: list[float]) -> Tensor:
    """Equation 2 with a weight for each place, token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for logits_V, targets_K in zip(logits_NV.double(), targets_NK.tolist(), strict=True):
        for target, weight in zip(targets_K, weights, strict=True):
            if target != IGNORED:
                total = total - weight * torch.log_softmax(logits_V, dim=-1)[target]
    return total


def inverse(k: int) -> Tensor:
    weights_K = target_weights(k, "inverse")
    assert weights_K is not None
    return weights_K


class WithoutFloat64(TorchFunctionMode):
    """An mps device, played by the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensor, *places = args
        if (kwargs.get("device") or (places or [None])[0]) == torch.device("mps"):
            if torch.float64 in (kwargs.get("dtype"), getattr(tensor, "dtype", None)):
                raise TypeError("no float64 here")
            kwargs.pop("device", None)
            return func(tensor, *(torch.device("cpu") for _ in places), **kwargs)
        return func(*args, **kwargs)


def test_weights_on_a_device_without_float64() -> None:
    with WithoutFloat64():
        weights_K = target_weights(4, "inverse", torch.device("mps"))
    assert weights_K is not None
    assert weights_K.dtype is torch.float32
    torch.testing.assert_close(weights_K, inverse(4).float())


def test_weights_by_hand() -> None:
    # 1, 1/2, 1/3, 1/4 have the mean 25/48.
    expected = [48 / 25, 24 / 25, 16 / 25, 12 / 25]
    assert inverse(4).tolist() == pytest.approx(expected, rel=1e-15)
    assert inverse(1).tolist() == [1.0]
    assert inverse(4).dtype is torch.float64
    assert target_weights(4, "uniform") is None
    assert TARGET_WEIGHTS == ("uniform", "inverse")


@given(k=st.integers(1, 64))
def test_weights_fall_and_have_the_mean_one(k: int) -> None:
    weights_K = inverse(k)
    assert float(weights_K.mean()) == pytest.approx(1.0, rel=1e-12)
    assert bool((weights_K.diff() < 0).all())
    assert float(weights_K[0] / weights_K[-1]) == pytest.approx(k, rel=1e-12)


@pytest.mark.parametrize("given", [[4, 2, 1, 1], (4.0, 2.0, 1.0, 1.0), [8e300, 4e300, 2e300, 2e300]], ids=str)
def test_a_list_weighs_by_its_ratios(given: Any) -> None:
    weights_K = target_weights(4, given)
    assert weights_K is not None
    assert weights_K.tolist() == pytest.approx([2, 1, 0.5, 0.5], rel=1e-15)
    targets_NK = random_labels(1, (7, 4), 23, 0.3)
    logits_NV = random_logits(2, 7, 23)
    loss = patch_cross_entropy(logits_NV, targets_NK, weights=weights_K)
    total = weighted_loss(logits_NV, targets_NK, [2, 1, 0.5, 0.5])
    assert relative_difference(loss.sum.detach(), total.detach()) < SAME


def test_a_list_may_score_the_first_token_alone() -> None:
    weights_K = target_weights(3, [1, 0, 0])
    assert weights_K is not None
    assert weights_K.tolist() == [3, 0, 0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1, 2, 3], r"\[1, 2, 3\] holds 3 weights where a position has 4 targets"),
        ([], r"\[\] must hold finite numbers"),
        ([0, 0, 0, 0], "not all of them 0"),
        ([1, 2, 3, -1], "at least 0"),
        ([1, 2, 3, float("nan")], "finite"),
        ([1, 2, 3, float("inf")], "finite"),
        ([1, 2, 3, True], "finite numbers"),
        ([1, 2, 3, "4"], "finite numbers"),
    ],
)
def test_bad_lists_are_refused(given: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"target_weights=.*{words}"):
        target_weights(4, given)


@pytest.mark.parametrize("kind", ["linear", "", None, 2])
def test_another_kind_is_refused_by_name(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"target_weights={kind!r}.*uniform, inverse"):
        target_weights(4, kind)


@given(seed=seeds, k=patch_sizes, N=st.integers(0, 9), V=st.integers(1, 60), ignored=shares_ignored)
def test_sum_count_hits_and_gradient_equal_the_naive_loop(
    seed: int, k: int, N: int, V: int, ignored: float
) -> None:
    logits_NV = random_logits(seed, N, V)
    targets_NK = random_labels(seed + 1, (N, k), V, ignored)
    loss = patch_cross_entropy(logits_NV, targets_NK, weights=inverse(k))
    total = weighted_loss(logits_NV, targets_NK, inverse(k).tolist())
    _, terms, hits = naive_loss(logits_NV, targets_NK)
    assert (int(loss.count), int(loss.hits)) == (terms, hits)
    assert relative_difference(loss.sum.detach(), total.detach()) < SAME
    if terms:
        (ours,) = torch.autograd.grad(loss.sum, logits_NV)
        (expected,) = torch.autograd.grad(total, logits_NV)
        assert float((ours - expected).abs().max()) < SAME * k


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("N", "V", "k"), [(1, 2, 1), (3, 7, 4), (5, 13, 3), (2, 31, 8)])
def test_gradient_by_finite_differences(N: int, V: int, k: int, weighted: bool) -> None:
    targets_NK = random_labels(N, (N, k), V, 0.3)
    weights_K = inverse(k) if weighted else None
    logits_NV = random_logits(V, N, V)
    assert torch.autograd.gradcheck(
        lambda z: patch_cross_entropy(z, targets_NK, weights=weights_K).sum, (logits_NV,)
    )
    assert torch.autograd.gradcheck(
        lambda z: patch_cross_entropy(z, targets_NK, weights=weights_K).mean, (logits_NV,)
    )


@given(seed=seeds, k=patch_sizes, ignored=shares_ignored)
def test_weights_of_one_change_nothing(seed: int, k: int, ignored: float) -> None:
    logits_NV = random_logits(seed, 7, 23)
    targets_NK = random_labels(seed + 1, (7, k), 23, ignored)
    plain = patch_cross_entropy(logits_NV, targets_NK)
    ones = patch_cross_entropy(logits_NV, targets_NK, weights=torch.ones(k))
    assert relative_difference(ones.sum.detach(), plain.sum.detach()) < SAME
    assert float(ones.mean.detach()) == pytest.approx(float(plain.mean.detach()), rel=1e-12)


def test_the_order_of_the_targets_matters_now() -> None:
    logits_1V = random_logits(1, 1, 9)
    one, other = (
        patch_cross_entropy(logits_1V, torch.tensor([order]), weights=inverse(2)).sum
        for order in ([3, 5], [5, 3])
    )
    assert abs(float((one - other).detach())) > 0.1
    # A token that stands twice weighs what both places weigh.
    twice = patch_cross_entropy(logits_1V, torch.tensor([[3, 3]]), weights=inverse(2)).sum
    assert float(twice) == pytest.approx(2 * float(F.cross_entropy(logits_1V, torch.tensor([3]))), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("elements", [1, 37, 3 * 37 + 5, 2**20])
def test_where_the_chunks_of_rows_end_does_not_matter(
    elements: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_NV, targets_NK = random_logits(2, 11, 37, dtype=dtype), random_labels(3, (11, 4), 37, 0.3)
    monkeypatch.setattr(chunked, "_CHUNK_ELEMENTS_CPU", elements)
    loss = patch_cross_entropy(logits_NV, targets_NK, weights=inverse(4))
    exact = weighted_loss(logits_NV, targets_NK, inverse(4).tolist())
    assert loss.sum.dtype is torch.float32
    assert relative_difference(loss.sum.detach(), exact.detach()) < 1e-6
    (gradient,) = torch.autograd.grad(loss.sum, logits_NV)
    (expected,) = torch.autograd.grad(exact, logits_NV)
    assert gradient.dtype is dtype
    torch.testing.assert_close(gradient, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_position_without_targets_may_hold_anything(value: float) -> None:
    logits_NV = random_logits(7, 3, 8).detach()
    spoilt_NV = logits_NV.clone()
    spoilt_NV[1] = value
    spoilt_NV.requires_grad_()
    targets_NK = torch.tensor([[3, 3], [IGNORED, IGNORED], [7, IGNORED]])
    clean = patch_cross_entropy(logits_NV, targets_NK, weights=inverse(2))
    spoilt = patch_cross_entropy(spoilt_NV, targets_NK, weights=inverse(2))
    assert float(spoilt.sum.detach()) == float(clean.sum)
    (gradient,) = torch.autograd.grad(spoilt.sum, spoilt_NV)
    assert torch.isfinite(gradient[[0, 2]]).all()


def test_a_token_masked_from_the_vocabulary_has_no_gradient_and_costs_nothing_unscored() -> None:
    logits_NV = random_logits(5, 6, 21).detach().masked_fill(torch.arange(21) >= 17, -torch.inf)
    logits_NV.requires_grad_()
    # Ignored targets read the logit of token 0, whatever stands there.
    targets_NK = random_labels(6, (6, 3), 17, 0.5)
    loss = patch_cross_entropy(logits_NV, targets_NK, weights=inverse(3))
    assert torch.isfinite(loss.sum)
    (gradient,) = torch.autograd.grad(loss.sum, logits_NV)
    assert torch.equal(gradient[:, 17:], torch.zeros(6, 4, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (1,), (4, 1), (2, 4), ()])
def test_weights_of_another_number_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"weights of shape .* 4 targets"):
        patch_cross_entropy(
            torch.zeros(2, 9), torch.zeros(2, 4, dtype=torch.int64), weights=torch.ones(shape)
        )


def test_microbatches_weighed_by_their_pairs_give_the_weighted_mean_of_the_batch() -> None:
    logits_NV, targets_NK = random_logits(1, 12, 19), random_labels(2, (12, 4), 19, 0.4)
    whole = patch_cross_entropy(logits_NV, targets_NK, weights=inverse(4))
    parts = [
        patch_cross_entropy(logits_NV[rows], targets_NK[rows], weights=inverse(4))
        for rows in torch.arange(12).split(5)
    ]
    pairs = sum(int(part.count) for part in parts)
    mean = sum(part.mean * int(part.count) / pairs for part in parts)
    torch.testing.assert_close(mean, whole.mean, rtol=1e-12, atol=0)


@given(seed=seeds, T=st.integers(1, 20), k=patch_sizes)
def test_targets_of_single_tokens_are_the_k_that_follow(seed: int, T: int, k: int) -> None:
    labels_BT = random_labels(seed, (2, T), V=99, ignored=0.2)
    before = labels_BT.clone()
    targets_BTK = next_tokens_targets(labels_BT, k, ignore_index=-7)
    for row, targets in zip(labels_BT.tolist(), targets_BTK.tolist(), strict=True):
        longer = [*row, *[-7] * k]
        assert targets == [longer[place + 1 : place + 1 + k] for place in range(T)]
    assert targets_BTK.is_contiguous()
    assert torch.equal(labels_BT, before)
    assert torch.equal(next_tokens_targets(labels_BT, 1), next_patch_targets(labels_BT, 1))


BATCH = {
    "input_ids": torch.tensor([[11, 12, 13, 14, 15], [21, 22, 9, 9, 9]]),
    "labels": torch.tensor([[11, 12, 13, 14, 15], [21, 22, -100, -100, -100]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
}


def test_patches_that_predict_one_token_by_hand() -> None:
    folded = fold_batch(BATCH, 2, patch_targets=False)
    assert folded[PATCH_IDS].shape == (2, 3, 2)
    assert folded[PATCH_TARGETS].tolist() == [[[13], [15], [-100]], [[-100], [-100], [-100]]]
    assert folded["total_tokens"] == [5, 2]
    assert folded["loss_generating_tokens"] == [2, 0]


def test_tokens_that_predict_the_next_two_by_hand() -> None:
    folded = fold_batch(BATCH, 2, patch_inputs=False)
    assert folded["input_ids"].tolist() == BATCH["input_ids"].tolist()
    assert folded[PATCH_IDS].tolist() == BATCH["input_ids"][..., None].tolist()
    assert folded[PATCH_MASK].tolist() == BATCH["attention_mask"][..., None].tolist()
    assert folded["attention_mask"].tolist() == BATCH["attention_mask"].tolist()
    assert folded[PATCH_TARGETS].tolist() == [
        [[12, 13], [13, 14], [14, 15], [15, -100], [-100, -100]],
        [[22, -100], [-100, -100], [-100, -100], [-100, -100], [-100, -100]],
    ]
    assert folded["loss_generating_tokens"] == [7, 1]


def test_neither_side_in_patches_is_token_level_training() -> None:
    folded = fold_batch(BATCH, 4, patch_inputs=False, patch_targets=False)
    token_level = fold_batch(BATCH, 1)
    assert folded.keys() == token_level.keys()
    for key, value in token_level.items():
        assert torch.equal(folded[key], value) if isinstance(value, Tensor) else folded[key] == value


def test_rows_of_single_tokens_need_be_no_multiple_of_k() -> None:
    rows = torch.arange(7).view(1, 7)
    folded = fold_batch({"input_ids": rows, "labels": rows}, 4, patch_inputs=False)
    assert folded[PATCH_TARGETS].shape == (1, 7, 4)
    with pytest.raises(ValueError, match=r"\b7\b.*\b4\b"):
        fold_batch({"input_ids": rows, "labels": rows}, 4, patch_targets=False)
