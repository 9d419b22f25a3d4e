"""The fused kernels against the float64 oracle and the torch version: on a GPU, or by Triton's interpreter.

Without a GPU these tests run in a process with TRITON_INTERPRET=1, which
:mod:`tests.loss.test_fused_interpreted` starts: Triton decides when it is imported.

Shapes: B rows, P positions, N positions, K targets per position, V vocabulary.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patch_algorithm.loss import PatchLoss, patch_cross_entropy, target_weights
from patch_algorithm.loss.kernels import chosen_kernel
from tests.oracle import IGNORED, naive_loss, random_labels, random_logits, relative_difference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(), reason="run by test_fused_interpreted.py"
    ),
    *([] if INTERPRETED else [pytest.mark.gpu]),
    # The interpreter's numpy: of scalars that it takes out of arrays, and of NaN and infinity.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One rounding of the result, the rest is float32. The interpreter cuts bfloat16 off instead of rounding it.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8, torch.float16: 2**-11}
LOSS = 2e-6


def fused(logits: Tensor, targets: Tensor, **options: object) -> PatchLoss:
    return patch_cross_entropy(logits, targets, kernel="triton", **options)  # pyright: ignore[reportArgumentType]


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


def on_device(tensor: Tensor) -> Tensor:
    return tensor.detach().to(DEVICE).requires_grad_(tensor.requires_grad)


def assert_as_torch(logits: Tensor, targets: Tensor, **options: object) -> None:
    """Loss, pairs, hits and gradient are those of the torch version in float64 of the same logits."""
    ours = fused(logits, targets, **options)
    exact = logits.detach().double().requires_grad_()
    options.setdefault("kernel", "torch")
    theirs = patch_cross_entropy(exact, targets, **options)  # pyright: ignore[reportArgumentType]
    assert (int(ours.count), int(ours.hits)) == (int(theirs.count), int(theirs.hits))
    assert ours.sum.dtype is torch.float32
    torch.testing.assert_close(ours.sum.double(), theirs.sum, rtol=LOSS, atol=LOSS * max(1, int(ours.count)))
    actual, expected = gradient(ours.sum, logits), gradient(theirs.sum, exact)
    assert actual.dtype is logits.dtype
    torch.testing.assert_close(actual.double(), expected, rtol=ROUNDING[logits.dtype], atol=2e-6)


@pytest.mark.parametrize("dtype", [*DTYPES[:2], pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    ("N", "K", "V"),
    [
        (1, 1, 1),
        (3, 4, 8),
        (3, 3, 37),
        (2, 9, 7),
        (2, 4, 2053),
        pytest.param(17, 1, 4096, marks=pytest.mark.slow),
        pytest.param(16, 8, 12_289, marks=pytest.mark.slow),
        pytest.param(5, 4, 50_257, marks=pytest.mark.slow),
        pytest.param(4, 16, 128_256, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("ignored", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_sum_count_hits_and_gradient_equal_the_naive_loop(
    N: int, K: int, V: int, ignored: float, dtype: torch.dtype
) -> None:
    logits_NV = random_logits(V, N, V, dtype=dtype)
    targets_NK = random_labels(N, (N, K), V, ignored)
    exact_NV = logits_NV.detach().double().requires_grad_()
    total, terms, hits = naive_loss(exact_NV, targets_NK)
    ours_NV = on_device(logits_NV)
    loss = fused(ours_NV, targets_NK.to(DEVICE))
    assert (int(loss.count), int(loss.hits)) == (terms, hits)
    assert abs(float(loss.sum.detach()) - float(total.detach())) <= LOSS * max(1.0, float(total.detach()))
    if terms:
        grad_NV = gradient(loss.sum, ours_NV).double().cpu()
        torch.testing.assert_close(grad_NV, gradient(total, exact_NV), rtol=ROUNDING[dtype], atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("K", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_grid_of_shapes(seed: int, K: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1000 * K + seed)
    N, V = (int(torch.randint(1, most, (), generator=draw)) for most in (6, 9000))
    logits_NV, targets_NK = random_logits(seed, N, V, dtype=dtype), random_labels(seed, (N, K), V, 0.3)
    weights_K = None if seed % 2 else target_weights(K, "inverse")
    assert_as_torch(on_device(logits_NV), targets_NK.to(DEVICE), weights=weights_K)


def test_the_largest_vocabulary() -> None:
    logits_NV = on_device(random_logits(1, 1, 262_144, dtype=torch.bfloat16))
    assert_as_torch(logits_NV, random_labels(2, (1, 4), 262_144, 0.0).to(DEVICE))


@pytest.mark.parametrize(
    "K", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(8, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", ["uniform", "inverse"])
def test_every_weighting(kind: str, K: int) -> None:
    logits_NV = on_device(random_logits(3, 2, 301, dtype=torch.float32))
    targets_NK = random_labels(4, (2, K), 301, 0.3).to(DEVICE)
    assert_as_torch(logits_NV, targets_NK, weights=target_weights(K, kind))


def test_targets_without_weight_are_counted() -> None:
    logits_NV = on_device(random_logits(5, 3, 40, dtype=torch.float32))
    targets_NK = random_labels(6, (3, 3), 40, 0.0).to(DEVICE)
    assert_as_torch(logits_NV, targets_NK, weights=torch.tensor([0.0, 3.0, 0.0]))
    assert_as_torch(logits_NV, targets_NK, weights=torch.zeros(3))


DTYPES_OF_STRIDES = [
    torch.bfloat16,
    *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES if d.itemsize != 2),
]


@pytest.mark.parametrize("dtype", DTYPES_OF_STRIDES, ids=str)
@pytest.mark.parametrize("V", [pytest.param(48, marks=pytest.mark.slow), 51])
@pytest.mark.parametrize("form", ["slice", "columns", "transposed", "expanded", "offset", "four", "one"])
def test_strides_as_they_come(form: str, V: int, dtype: torch.dtype) -> None:
    storage_BPV = on_device(random_logits(7, 2, 3, V, dtype=dtype)).detach()
    logits, targets_shape = {
        "slice": (storage_BPV[:, :-1], (2, 2, 2)),
        "columns": (storage_BPV[:, 1:, 3:], (2, 2, 2)),
        "transposed": (storage_BPV.mT.contiguous().mT[:, :2], (2, 2, 2)),
        "expanded": (storage_BPV[:, :1].expand(2, 2, V), (2, 2, 2)),
        "offset": (storage_BPV.flatten()[5 : 5 + 4 * V].view(2, 2, V), (2, 2, 2)),
        "four": (storage_BPV[:, None, :-1], (2, 1, 2, 2)),
        "one": (storage_BPV[0, 0], (2,)),
    }[form]
    assert form != "transposed" or logits.stride(-1) != 1
    targets = random_labels(8, (*targets_shape[:-1], 4), V - 5, 0.2).to(DEVICE)[..., ::2]  # apart, too
    assert_as_torch(logits.requires_grad_(), targets)


def test_the_gradient_goes_through_a_view() -> None:
    storage_BPV = on_device(random_logits(7, 2, 3, 51, dtype=torch.float32))
    targets_BPK = random_labels(8, (2, 2, 2), 51, 0.2).to(DEVICE)
    ours, theirs = (
        gradient(patch_cross_entropy(storage_BPV[:, :-1], targets_BPK, kernel=kernel).sum, storage_BPV)
        for kernel in ("triton", "torch")
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not INTERPRETED, reason="a sparse file stands for memory that is not there")
@pytest.mark.parametrize(("shape", "strides"), [((3, 40), (2**30 + 8, 1)), ((1, 4), (1, 2**30 + 8))], ids=str)
def test_beyond_32_bits(shape: tuple[int, int], strides: tuple[int, int], tmp_path: Path) -> None:
    """The strides fit 32 bits, and what they add up to does not."""
    (N, V), last = shape, sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    file = torch.from_file(str(tmp_path / "logits"), shared=True, size=last + 1, dtype=torch.bfloat16)
    logits_NV = file.as_strided(shape, strides)
    logits_NV.copy_(random_logits(9, N, V).detach())
    assert_as_torch(logits_NV.requires_grad_(), random_labels(10, (N, 3), V, 0.0))


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter's loads and stores are counted")
@pytest.mark.parametrize("V", [4000, 4001], ids=["rows at 16 bytes", "rows anywhere"])
def test_each_logit_is_read_once_forward_and_once_backward(V: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    moved = {"read": 0, "written": 0}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(self: object, ptrs: Any, mask: Any, *args: object) -> object:
        moved["read"] += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
        return load(self, ptrs, mask, *args)  # pyright: ignore[reportArgumentType]

    def counted_store(self: object, ptrs: Any, value: Any, mask: Any, *args: object) -> object:
        moved["written"] += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
        return store(self, ptrs, value, mask, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)
    K, targets = 4, 8 * 4
    logits_NV = on_device(random_logits(31, 2, V, dtype=torch.bfloat16))
    loss = fused(logits_NV, random_labels(32, (2, K), V, 0.0))
    summed = 2 * 3 * 4
    assert moved == {"read": 2 * (2 * V + targets + 16 + 2 * K) + summed, "written": 2 * 5 * 4 + 4 + 8 + 8}
    moved.update(read=0, written=0)
    gradient(loss.sum, logits_NV)
    assert moved == {"read": 2 * (2 * V + targets + 2 * K + 3 * 4), "written": 2 * (2 * V + 2 * K)}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_position_without_targets_may_hold_anything_and_has_no_gradient(value: float) -> None:
    clean_NV = on_device(random_logits(11, 3, 65, dtype=torch.float32))
    spoilt_NV = clean_NV.detach().clone()
    spoilt_NV[1] = value
    spoilt_NV.requires_grad_()
    targets_NK = torch.tensor([[3, 3], [IGNORED, IGNORED], [64, IGNORED]], device=DEVICE)
    clean, spoilt = fused(clean_NV, targets_NK), fused(spoilt_NV, targets_NK)
    assert torch.equal(spoilt.sum, clean.sum)
    grad_NV = gradient(spoilt.sum, spoilt_NV)
    assert torch.equal(grad_NV, gradient(clean.sum, clean_NV))
    assert not grad_NV[1].any()


def test_nothing_to_score_at_all() -> None:
    logits_NV = on_device(random_logits(12, 3, 9, dtype=torch.bfloat16))
    loss = fused(logits_NV, torch.full((3, 2), IGNORED, device=DEVICE))
    assert (float(loss.sum), int(loss.count), int(loss.hits)) == (0.0, 0, 0)
    assert not gradient(loss.mean, logits_NV).any()
    empty_NV = torch.zeros(0, 5, requires_grad=True, device=DEVICE)
    loss = fused(empty_NV, torch.zeros(0, 4, dtype=torch.int64, device=DEVICE))
    assert (float(loss.sum), int(loss.count), int(loss.hits)) == (0.0, 0, 0)
    assert gradient(loss.sum, empty_NV).shape == (0, 5)


def test_a_token_that_stands_twice_counts_twice() -> None:
    logits_NV = on_device(random_logits(13, 1, 27, dtype=torch.float32))
    assert_as_torch(logits_NV, torch.tensor([[4, IGNORED, 4]], device=DEVICE))
    weights_K = torch.tensor([1.5, 0.5, 1.0])
    assert_as_torch(logits_NV, torch.tensor([[4, 9, 4]], device=DEVICE), weights=weights_K)


@pytest.mark.parametrize("V", [4, 512, 5001])
def test_of_equal_logits_the_first_is_the_most_likely(V: int) -> None:
    logits_NV = torch.zeros(3, V, device=DEVICE)
    logits_NV[1, V // 2 :] = 1.0
    logits_NV[2] = torch.finfo(torch.float32).min
    targets_NK = torch.tensor([[0, 1], [V // 2, V - 1], [1, 0]], device=DEVICE)
    assert int(fused(logits_NV, targets_NK).hits) == 3


@pytest.mark.parametrize("fill", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_masked_vocabulary_has_no_gradient(fill: float) -> None:
    dense_NV = on_device(random_logits(14, 4, 21, dtype=torch.float32))
    masked_NV = dense_NV.masked_fill(torch.arange(21, device=DEVICE) >= 17, fill)
    targets_NK = random_labels(15, (4, 3), 17, 0.2).to(DEVICE)
    assert_as_torch(masked_NV.detach().requires_grad_(), targets_NK)
    assert not gradient(fused(masked_NV, targets_NK).sum, dense_NV)[:, 17:].any()


def test_an_impossible_target_costs_infinity_as_in_torch() -> None:
    logits_NV = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True, device=DEVICE)
    loss = fused(logits_NV, torch.tensor([[1]], device=DEVICE))
    assert float(loss.sum) == torch.inf
    expected = torch.softmax(logits_NV.detach(), -1) - torch.tensor([[0.0, 1.0, 0.0]], device=DEVICE)
    torch.testing.assert_close(gradient(loss.sum, logits_NV), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_seen_in_the_loss(value: float) -> None:
    logits_NV = torch.zeros(1, 300, device=DEVICE)
    logits_NV[0, 290] = value
    assert torch.isnan(fused(logits_NV, torch.tensor([[1]], device=DEVICE)).sum)


@pytest.mark.parametrize("target", [5, -1, -99, 2**40])
def test_a_target_outside_the_vocabulary_makes_the_loss_nan_and_reads_nothing(target: int) -> None:
    logits_NV = torch.zeros(1, 5, device=DEVICE, requires_grad=True)
    loss = fused(logits_NV, torch.tensor([[0, target]], device=DEVICE)).sum
    assert torch.isnan(loss)
    assert gradient(loss, logits_NV).isfinite().all()


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_as_accurate_however_large_the_logits(offset: float) -> None:
    draw = torch.Generator().manual_seed(16)
    logits_NV = (3 * torch.randn(2, 700, generator=draw) + offset).requires_grad_()
    targets_NK = random_labels(17, (2, 4), 700, 0.0)
    exact_NV = logits_NV.detach().double().requires_grad_()
    exact, pairs, _ = naive_loss(exact_NV, targets_NK)
    ours_NV = on_device(logits_NV)
    loss = fused(ours_NV, targets_NK.to(DEVICE))
    assert abs(float(loss.sum.detach()) - float(exact.detach())) / pairs < 2e-6
    grad_NV = gradient(loss.sum, ours_NV).double().cpu()
    torch.testing.assert_close(grad_NV, gradient(exact, exact_NV), rtol=3e-5, atol=1e-7)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    logits_NV = on_device(random_logits(18, 3, 50, dtype=torch.float32))
    targets_NK = random_labels(19, (3, 4), 50, 0.2).to(DEVICE)
    grad_NV = gradient(fused(logits_NV, targets_NK).sum, logits_NV)
    step_NV = 0.01 * on_device(random_logits(20, 3, 50, dtype=torch.float32)).detach()
    up, down = (fused(logits_NV.detach() + sign * step_NV, targets_NK).sum for sign in (1, -1))
    torch.testing.assert_close((up - down) / 2, (grad_NV * step_NV).sum(), rtol=5e-3, atol=1e-4)


def test_scaled_and_repeated_backward() -> None:
    logits_NV = on_device(random_logits(25, 3, 50, dtype=torch.float32))
    before_NV = logits_NV.detach().clone()
    loss = fused(logits_NV, random_labels(26, (3, 4), 50, 0.3).to(DEVICE))
    once, again = gradient(loss.sum, logits_NV), gradient(loss.sum, logits_NV)
    assert torch.equal(once, again)
    torch.testing.assert_close(gradient(loss.sum / 7, logits_NV), once / 7)
    assert torch.equal(logits_NV.detach(), before_NV)  # nobody's logits are overwritten


def test_any_ignored_value_will_do() -> None:
    logits_NV = on_device(random_logits(27, 3, 6, dtype=torch.float32))
    ours = fused(logits_NV, torch.tensor([[1, 0], [0, 0], [5, 3]], device=DEVICE), ignore_index=0)
    usual = fused(logits_NV, torch.tensor([[1, -100], [-100, -100], [5, 3]], device=DEVICE))
    assert torch.equal(ours.sum, usual.sum)
    assert torch.equal(gradient(ours.sum, logits_NV), gradient(usual.sum, logits_NV))


def test_counts_are_integers_and_a_second_derivative_is_refused() -> None:
    logits_NV = on_device(random_logits(28, 2, 3, dtype=torch.float32))
    loss = fused(logits_NV, torch.tensor([[0], [2]], device=DEVICE))
    assert loss.count.dtype is loss.hits.dtype is torch.int64
    assert not loss.count.requires_grad
    with pytest.raises(RuntimeError, match="create_graph=True is not supported"):
        torch.autograd.grad(loss.sum, logits_NV, create_graph=True)


def test_float64_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"does not support logits of torch.float64"):
        fused(torch.zeros(1, 3, dtype=torch.float64, device=DEVICE), torch.tensor([[0]], device=DEVICE))


def test_auto_is_torch_for_float64_and_on_a_cpu() -> None:
    assert chosen_kernel("auto", torch.device("cpu"), torch.float32) == "torch"
    assert chosen_kernel("auto", torch.device(DEVICE), torch.float64) == "torch"


@pytest.mark.slow
def test_the_sum_does_not_lose_digits_over_many_positions() -> None:
    logits_NV = on_device(random_logits(29, 300, 5, dtype=torch.float32))
    targets_NK = random_labels(30, (300, 2), 5, 0.1)
    exact, _, _ = naive_loss(logits_NV.detach().double().cpu(), targets_NK)
    assert relative_difference(fused(logits_NV, targets_NK.to(DEVICE)).sum.detach().cpu(), exact) < 2e-7
