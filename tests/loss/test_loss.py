"""Properties of the K-target cross-entropy, and its behaviour at the edges.

Shapes: B rows, P positions, N = B * P, K targets per position, V vocabulary.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patch_algorithm.loss import PatchLoss, chunked, patch_cross_entropy
from patch_algorithm.patching import next_patch_targets
from tests.oracle import (
    IGNORED,
    naive_loss,
    random_labels,
    random_logits,
    relative_difference,
)

SAME = 1e-10

seeds = st.integers(0, 2**31)
patch_sizes = st.sampled_from([1, 2, 3, 4, 8])
shares_ignored = st.sampled_from([0.0, 0.3, 0.9, 1.0])


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


def assert_same(actual: PatchLoss, expected: PatchLoss) -> None:
    assert int(actual.count) == int(expected.count)
    assert int(actual.hits) == int(expected.hits)
    assert relative_difference(actual.sum.detach(), expected.sum.detach()) < SAME


@given(seed=seeds, k=patch_sizes, N=st.integers(0, 9), V=st.integers(1, 60), ignored=shares_ignored)
def test_sum_count_hits_and_gradient_equal_the_naive_loop(
    seed: int, k: int, N: int, V: int, ignored: float
) -> None:
    logits_NV = random_logits(seed, N, V)
    targets_NK = random_labels(seed + 1, (N, k), V, ignored)
    total, terms, hits = naive_loss(logits_NV, targets_NK)
    loss = patch_cross_entropy(logits_NV, targets_NK)
    assert (int(loss.count), int(loss.hits)) == (terms, hits)
    assert relative_difference(loss.sum.detach(), total.detach()) < SAME
    if terms:
        expected_NV = gradient(total, logits_NV)
        difference = gradient(loss.sum, logits_NV) - expected_NV
        assert float(difference.abs().max()) < SAME * k


@given(seed=seeds, k=patch_sizes, P=st.integers(1, 6), ignored=shares_ignored)
def test_equals_k_shifted_cross_entropies(seed: int, k: int, P: int, ignored: float) -> None:
    V, B = 23, 2
    logits_BPV = random_logits(seed, B, P, V)
    labels_BT = random_labels(seed + 1, (B, P * k), V, ignored)
    total, terms = torch.zeros((), dtype=torch.float64), 0
    for offset in range(k):
        targets_BP = labels_BT[:, k + offset :: k]
        total = total + F.cross_entropy(
            logits_BPV[:, :-1].reshape(-1, V), targets_BP.reshape(-1), reduction="sum"
        )
        terms += int((targets_BP != IGNORED).sum())
    loss = patch_cross_entropy(logits_BPV, next_patch_targets(labels_BT, k))
    assert int(loss.count) == terms
    assert relative_difference(loss.sum.detach(), total.detach()) < SAME


@given(seed=seeds, ignored=st.sampled_from([0.0, 0.4]))
def test_with_one_target_it_is_ordinary_cross_entropy(seed: int, ignored: float) -> None:
    logits_NV = random_logits(seed, 12, 31, dtype=torch.float32)
    targets_N = random_labels(seed + 1, (12,), 31, ignored)
    loss = patch_cross_entropy(logits_NV, targets_N[:, None])
    expected = F.cross_entropy(logits_NV, targets_N)
    torch.testing.assert_close(loss.mean, expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(
        gradient(loss.mean, logits_NV), gradient(expected, logits_NV), rtol=1e-5, atol=1e-8
    )


@given(seed=seeds, k=st.sampled_from([2, 3, 8]), ignored=shares_ignored, data=st.data())
def test_the_order_of_the_targets_in_a_patch_is_irrelevant(
    seed: int, k: int, ignored: float, data: st.DataObject
) -> None:
    logits_NV = random_logits(seed, 5, 19)
    targets_NK = random_labels(seed + 1, (5, k), 19, ignored)
    orders = [data.draw(st.permutations(range(k))) for _ in range(5)]
    shuffled_NK = targets_NK.gather(1, torch.tensor(orders))
    ours, shuffled = (patch_cross_entropy(logits_NV, t) for t in (targets_NK, shuffled_NK))
    assert_same(shuffled, ours)
    difference = gradient(shuffled.sum, logits_NV) - gradient(ours.sum, logits_NV)
    assert float(difference.abs().max()) < SAME


def test_a_token_that_stands_twice_counts_twice() -> None:
    logits_NV = random_logits(1, 1, 7)
    single = patch_cross_entropy(logits_NV, torch.tensor([[4]]))
    double = patch_cross_entropy(logits_NV, torch.tensor([[4, IGNORED, 4]]))
    assert int(double.count) == 2
    assert float(double.sum) == pytest.approx(2 * float(single.sum), rel=1e-14)
    torch.testing.assert_close(
        gradient(double.sum, logits_NV), 2 * gradient(single.sum, logits_NV), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("elements", [1, 37, 3 * 37 + 5, 2**20])
def test_where_the_chunks_of_rows_end_does_not_matter(
    elements: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_NV = random_logits(2, 11, 37, dtype=dtype)
    targets_NK = random_labels(3, (11, 4), 37, 0.3)
    monkeypatch.setattr(chunked, "_CHUNK_ELEMENTS_CPU", 11 * 37)
    whole = patch_cross_entropy(logits_NV, targets_NK)
    whole_grad = gradient(whole.sum, logits_NV)
    monkeypatch.setattr(chunked, "_CHUNK_ELEMENTS_CPU", elements)
    split = patch_cross_entropy(logits_NV, targets_NK)
    assert torch.equal(gradient(split.sum, logits_NV), whole_grad)
    assert torch.equal(split.sum, whole.sum)
    assert int(split.hits) == int(whole.hits)


@pytest.mark.parametrize("V", [255, 256, 257, 384, 1000])
@pytest.mark.parametrize("values", [2, 40, 10_000])
def test_the_most_likely_token_is_the_first_of_the_largest_logits(V: int, values: int) -> None:
    """In bfloat16 many are equal; on a CPU the place of the largest is looked for in two steps."""
    draw = torch.Generator().manual_seed(V + values)
    logits_NV = torch.randint(0, values, (50, V), generator=draw).float() - 9
    logits_NV[3] = -torch.inf
    logits_NV[4, 1:] = -torch.inf
    logits_NV[5, : V - 1] = torch.finfo(torch.float32).min
    logits_NV[6] = logits_NV[6, :1]
    first_N = torch.tensor([row.index(max(row)) for row in logits_NV.tolist()])
    targets_NK = torch.stack([first_N, (first_N + 1) % V], dim=1)
    for logits in (logits_NV, logits_NV.t().contiguous().t()):
        assert int(patch_cross_entropy(logits, targets_NK).hits) == 50
    logits_NV[:, 0] = torch.nan
    assert int(patch_cross_entropy(logits_NV, targets_NK).hits) <= 50  # and no index out of bounds


def test_one_patch_per_row_predicts_nothing() -> None:
    logits_BPV = random_logits(4, 3, 1, 9)
    loss = patch_cross_entropy(logits_BPV, next_patch_targets(torch.arange(12).view(3, 4), k=4))
    assert (float(loss.sum), int(loss.count), int(loss.hits)) == (0.0, 0, 0)
    assert float(loss.mean) == 0.0
    assert torch.equal(gradient(loss.mean, logits_BPV), torch.zeros(3, 1, 9, dtype=torch.float64))


def test_no_positions_at_all() -> None:
    logits_NV = torch.zeros(0, 5, requires_grad=True)
    loss = patch_cross_entropy(logits_NV, torch.zeros(0, 4, dtype=torch.int64))
    assert (float(loss.sum), int(loss.count), int(loss.hits)) == (0.0, 0, 0)
    assert gradient(loss.sum, logits_NV).shape == (0, 5)


def test_a_masked_vocabulary_has_no_gradient() -> None:
    dense = random_logits(5, 6, 21)
    masked_NV = dense.masked_fill(torch.arange(21) >= 17, -torch.inf)
    targets_NK = random_labels(6, (6, 3), 17, 0.2)
    loss = patch_cross_entropy(masked_NV, targets_NK)
    small = patch_cross_entropy(dense[:, :17], targets_NK)
    assert_same(loss, small)
    grad_NV = gradient(loss.sum, dense)
    assert torch.equal(grad_NV[:, 17:], torch.zeros(6, 4, dtype=torch.float64))
    torch.testing.assert_close(grad_NV[:, :17], gradient(small.sum, dense)[:, :17])


def test_an_impossible_target_costs_infinity_as_in_torch() -> None:
    logits_NV = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    loss = patch_cross_entropy(logits_NV, torch.tensor([[1]]))
    expected = F.cross_entropy(logits_NV, torch.tensor([1]))
    assert float(loss.sum) == float(expected) == torch.inf
    torch.testing.assert_close(gradient(loss.sum, logits_NV), gradient(expected, logits_NV))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_position_without_targets_may_hold_anything(value: float) -> None:
    logits_NV = random_logits(7, 3, 8)
    spoilt_NV = logits_NV.detach().clone()
    spoilt_NV[1] = value
    spoilt_NV.requires_grad_()
    targets_NK = torch.tensor([[3, 3], [IGNORED, IGNORED], [7, IGNORED]])
    clean, spoilt = (patch_cross_entropy(z, targets_NK) for z in (logits_NV, spoilt_NV))
    assert_same(spoilt, clean)
    rest = [0, 2]
    assert torch.equal(gradient(spoilt.sum, spoilt_NV)[rest], gradient(clean.sum, logits_NV)[rest])


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, -1e4])
def test_as_accurate_as_torch_however_large_the_logits(offset: float) -> None:
    """A shift common to all logits of a position changes nothing in exact arithmetic."""
    draw = torch.Generator().manual_seed(8)
    logits_NV = (3 * torch.randn(64, 300, generator=draw) + offset).requires_grad_()
    targets_NK = random_labels(9, (64, 4), 300, 0.0)
    exact_NV = logits_NV.detach().double().requires_grad_()
    exact, pairs, _ = naive_loss(exact_NV, targets_NK)
    loss = patch_cross_entropy(logits_NV, targets_NK)
    assert abs(float(loss.sum.detach()) - float(exact.detach())) / pairs < 2e-6
    torch.testing.assert_close(
        gradient(loss.sum, logits_NV).double(), gradient(exact, exact_NV), rtol=3e-5, atol=1e-7
    )


def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    logits_NV = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    loss = patch_cross_entropy(logits_NV, torch.tensor([[0, 0], [1, 2]]))
    assert float(loss.sum) == pytest.approx(2 * torch.log(torch.tensor(2.0)).item(), rel=1e-3)
    assert torch.isfinite(gradient(loss.sum, logits_NV)).all()


def test_only_one_of_equal_logits_is_the_most_likely_token() -> None:
    """As in TokenAccuracy: a model that knows nothing is not always right."""
    loss = patch_cross_entropy(torch.zeros(1, 4), torch.tensor([[0, 1, 2, 3]]))
    assert int(loss.hits) == 1


def test_a_view_of_the_logits_is_scored_in_place() -> None:
    storage = random_logits(10, 17, 4, 3)
    logits_BPV, targets_BPK = storage.permute(2, 1, 0), random_labels(11, (3, 4, 2), 17, 0.2)
    assert not logits_BPV.is_contiguous()
    view = patch_cross_entropy(logits_BPV, targets_BPK)
    copy = patch_cross_entropy(logits_BPV.contiguous(), targets_BPK)
    assert_same(view, copy)
    torch.testing.assert_close(gradient(view.sum, storage), gradient(copy.sum, storage))


@pytest.mark.parametrize("target", [5, -1, -99])
def test_a_target_outside_the_vocabulary_raises(target: int) -> None:
    with pytest.raises((IndexError, RuntimeError, ValueError), match="out of bounds"):
        patch_cross_entropy(torch.zeros(1, 5), torch.tensor([[0, target]]))


def test_any_ignored_value_will_do() -> None:
    logits_NV = random_logits(12, 3, 6)
    ours = patch_cross_entropy(logits_NV, torch.tensor([[1, 0], [0, 0], [5, 3]]), ignore_index=0)
    usual = patch_cross_entropy(logits_NV, torch.tensor([[1, -100], [-100, -100], [5, 3]]))
    assert_same(ours, usual)
    assert torch.equal(gradient(ours.sum, logits_NV), gradient(usual.sum, logits_NV))


@pytest.mark.parametrize("shape", [(2, 3), (3, 2, 4), (2, 2, 4), (6, 4)])
def test_leading_dimensions_that_differ_are_named(shape: tuple[int, ...]) -> None:
    targets = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*" + str(shape).replace("(", r"\(")[:-1]):
        patch_cross_entropy(torch.zeros(2, 3, 5), targets)


def test_works_without_gradients() -> None:
    logits_NV, targets_NK = random_logits(13, 4, 9), random_labels(14, (4, 2), 9, 0.0)
    with torch.no_grad():
        loss = patch_cross_entropy(logits_NV, targets_NK)
    assert not loss.sum.requires_grad
    assert_same(loss, patch_cross_entropy(logits_NV, targets_NK))


def test_counts_are_integers_without_gradient() -> None:
    loss = patch_cross_entropy(random_logits(15, 2, 3), torch.tensor([[0], [2]]))
    assert loss.count.dtype is loss.hits.dtype is torch.int64
    assert not loss.count.requires_grad
    assert not loss.hits.requires_grad


def test_autocast_keeps_the_arithmetic_in_float32() -> None:
    draw = torch.Generator().manual_seed(16)
    hidden_ND = torch.randn(6, 16, generator=draw)
    head = torch.nn.Linear(16, 4001, bias=False)
    targets_NK = random_labels(17, (6, 4), 4001, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        logits_NV = head(hidden_ND)
        first = patch_cross_entropy(logits_NV, targets_NK)
        second = patch_cross_entropy(logits_NV, targets_NK)
    assert logits_NV.dtype is torch.bfloat16
    assert first.sum.dtype is second.sum.dtype is torch.float32
    outside = patch_cross_entropy(logits_NV.detach(), targets_NK)
    assert float(first.sum) == float(second.sum) == float(outside.sum)
    exact, _, _ = naive_loss(logits_NV.detach(), targets_NK)
    assert relative_difference(first.sum.detach(), exact) < 1e-6
    (first.sum + second.sum).backward()
    assert head.weight.grad is not None
    assert torch.isfinite(head.weight.grad).all()


def test_scaling_the_loss_scales_the_gradient() -> None:
    logits_NV, targets_NK = random_logits(18, 5, 9), random_labels(19, (5, 3), 9, 0.3)
    loss = patch_cross_entropy(logits_NV, targets_NK)
    once = torch.autograd.grad(loss.sum, logits_NV, retain_graph=True)[0]
    again = torch.autograd.grad(loss.sum / 7, logits_NV)[0]
    torch.testing.assert_close(again, once / 7, rtol=1e-13, atol=0)


def test_a_second_derivative_is_refused() -> None:
    """The first one would be a constant in it, without a word."""
    logits_NV = random_logits(1, 6, 7)
    loss = patch_cross_entropy(logits_NV, random_labels(2, (6, 3), 7, 0.0)).mean
    with pytest.raises(RuntimeError, match="create_graph=True is not supported"):
        torch.autograd.grad(loss, logits_NV, create_graph=True)
    (gradient,) = torch.autograd.grad(loss, logits_NV)  # which leaves ordinary training alone
    assert not gradient.requires_grad
