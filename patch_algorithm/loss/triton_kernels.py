"""The Triton kernels of the K-target loss: one read of the logits forward, one read and one write backward.

Shapes: B rows, P positions, N = B * P, V vocabulary, K targets per position. A tile is R groups of G
logits; a group is 16 bytes, what a thread reads at once. One program does one position.

Forward: every thread keeps, in registers, the maximum of what it has seen and the sum of exponentials
relative to it, and rescales the sum when the maximum grows (online softmax, arXiv 1805.02867). Of the most
likely token it notes the group only, which is looked at again at the end: 16 bytes a position instead of a
comparison for every logit. Backward: the softmax is written, and then the logits that were targets are
overwritten, with one rounding each: what a target costs does not depend on V, nor what a logit costs on K.
"""

# The language of kernels has no types, its decorator wrong ones, and names in capitals are constants to it.
# pyright: basic, reportArgumentType=false, reportGeneralTypeIssues=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["backward_kernel", "forward_kernel", "sum_kernel"]

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite, so that a difference from it is a number
# Another value of these is no other kernel. Of strides and the vocabulary it is, where it allows wide loads.
_PLAIN = ["P", "K", "ignore_index"]


@triton.jit
def _targets(
    targets_ptr, weights_ptr, b, p, target_sb, target_sp, target_sk, K, V, ignore_index,
    WEIGHTED: tl.constexpr, K_BLOCK: tl.constexpr,
):  # fmt: skip
    """A position's targets, which of them are scored, which exist, and what each counts."""
    j = tl.arange(0, K_BLOCK)
    at_K = targets_ptr + b * target_sb + p * target_sp + j * target_sk
    target_K = tl.load(at_K, mask=j < K, other=ignore_index)
    valid_K = (target_K != ignore_index) & (j < K)
    known_K = valid_K & (target_K >= 0) & (target_K < V)
    if WEIGHTED:
        weight_K = tl.load(weights_ptr + j, mask=valid_K, other=0.0)
    else:
        weight_K = tl.where(valid_K, 1.0, 0.0)
    return target_K, valid_K, known_K, weight_K


@triton.jit
def _at(ptr, column, stride, UNIT: tl.constexpr):
    """Where columns lie; their offsets outgrow 32 bits only if they are apart."""
    if UNIT:
        return ptr + column
    else:
        return ptr + column.to(tl.int64) * stride


@triton.jit
def _head(offset, V, PEEL: tl.constexpr, G: tl.constexpr):
    """Logits before the row's first multiple of 16 bytes; 0 where all rows start at one."""
    if PEEL:
        return tl.minimum((G - offset % G) % G, V).to(tl.int32)
    else:
        return 0


@triton.jit
def _body(ptr, offset, head, PEEL: tl.constexpr, G: tl.constexpr):
    """The row from there on, with the compiler told that it is one."""
    if PEEL:
        return ptr + tl.multiple_of(offset + head, G)
    else:
        return ptr + offset


@triton.jit
def _take_in(x_RG, group_R, max_R, sum_R, best_R):
    """One tile more: maximum, sum relative to it, and the group where each thread's maximum stood first."""
    tile_R = tl.max(x_RG, axis=1)
    best_R = tl.where(tile_R > max_R, group_R, best_R)
    higher_R = tl.maximum(max_R, tile_R)
    sum_R = sum_R * tl.exp(max_R - higher_R) + tl.sum(tl.exp(x_RG - higher_R[:, None]), axis=1)
    return higher_R, sum_R, best_R


@triton.jit
def _softmax_of_row(
    logits_ptr, offset, V, logit_sv,
    UNIT: tl.constexpr, PEEL: tl.constexpr, BLOCK: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """A position's maximum, where it stands first, and the sum of exponentials relative to it."""
    row_ptr = logits_ptr + offset
    head = _head(offset, V, PEEL, G)
    body_ptr = _body(logits_ptr, offset, head, PEEL, G)
    group_R = tl.arange(0, BLOCK // G) * G
    column_RG = group_R[:, None] + tl.arange(0, G)[None, :]
    max_R = tl.full([BLOCK // G], _LOWEST, tl.float32)
    sum_R = tl.zeros([BLOCK // G], tl.float32)
    best_R = group_R
    left = V - head
    whole = left // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        x_RG = tl.load(_at(body_ptr, start + column_RG, logit_sv, UNIT)).to(tl.float32)
        max_R, sum_R, best_R = _take_in(x_RG, start + group_R, max_R, sum_R, best_R)
    if whole < left:
        at_RG = _at(body_ptr, whole + column_RG, logit_sv, UNIT)
        x_RG = tl.load(at_RG, mask=whole + column_RG < left, other=-float("inf")).to(tl.float32)
        max_R, sum_R, best_R = _take_in(x_RG, whole + group_R, max_R, sum_R, best_R)
    top = tl.max(max_R, axis=0)
    g = tl.arange(0, G)
    if PEEL:
        x_G = tl.load(row_ptr + g, mask=g < head, other=-float("inf")).to(tl.float32)
        top = tl.maximum(top, tl.max(x_G, axis=0))
    total = tl.sum(sum_R * tl.exp(max_R - top), axis=0)
    group = head + tl.min(tl.where(max_R == top, best_R, V), axis=0)
    if PEEL:
        total += tl.sum(tl.exp(x_G - top), axis=0)
        group = tl.where(tl.max(x_G, axis=0) == top, 0, group)
    at = group + g
    x_G = tl.load(_at(row_ptr, at, logit_sv, UNIT), mask=at < V, other=-float("inf")).to(tl.float32)
    return top, tl.min(tl.where(x_G == top, at, V), axis=0), total


@triton.jit(do_not_specialize=_PLAIN)
def forward_kernel(
    logits_ptr, targets_ptr, weights_ptr, max_ptr, sum_ptr, loss_ptr, count_ptr, hits_ptr,
    P, V, K, ignore_index, logit_sb, logit_sp, logit_sv, target_sb, target_sp, target_sk,
    WEIGHTED: tl.constexpr, UNIT: tl.constexpr, PEEL: tl.constexpr,
    BLOCK: tl.constexpr, G: tl.constexpr, K_BLOCK: tl.constexpr,
):  # fmt: skip
    """A position's maximum and sum of exponentials, and its part of the loss, the pairs and the hits."""
    n = tl.program_id(0)
    b, p = (n // P).to(tl.int64), (n % P).to(tl.int64)
    target_K, valid_K, known_K, weight_K = _targets(
        targets_ptr, weights_ptr, b, p, target_sb, target_sp, target_sk, K, V, ignore_index, WEIGHTED, K_BLOCK
    )
    offset = b * logit_sb + p * logit_sp
    pairs = tl.sum(valid_K.to(tl.int32), axis=0)
    top, total, loss, hits = 0.0, 1.0, 0.0, 0
    if pairs > 0:  # else nothing is read, whatever it holds
        top, best, total = _softmax_of_row(logits_ptr, offset, V, logit_sv, UNIT, PEEL, BLOCK, G)
        # A target that does not exist makes the loss NaN.
        at_K = logits_ptr + offset + target_K * logit_sv
        chosen_K = tl.load(at_K, mask=known_K, other=float("nan")).to(tl.float32)
        gain_K = tl.where(valid_K, weight_K * (chosen_K - top), 0.0)
        loss = tl.sum(weight_K, axis=0) * tl.log(total) - tl.sum(gain_K, axis=0)
        hits = tl.sum((valid_K & (target_K == best)).to(tl.int32), axis=0)
    tl.store(max_ptr + n, top)
    tl.store(sum_ptr + n, total)
    tl.store(loss_ptr + n, loss)
    tl.store(count_ptr + n, pairs)
    tl.store(hits_ptr + n, hits)


@triton.jit(do_not_specialize=["N"])
def sum_kernel(
    loss_ptr, count_ptr, hits_ptr, loss_out_ptr, count_out_ptr, hits_out_ptr, N, BLOCK: tl.constexpr
):
    """The sums over all positions, in one program and so always in the same order."""
    loss_R = tl.zeros([BLOCK], tl.float64)
    count_R = tl.zeros([BLOCK], tl.int64)
    hits_R = tl.zeros([BLOCK], tl.int64)
    for start in range(0, N, BLOCK):
        n_R = start + tl.arange(0, BLOCK)
        loss_R += tl.load(loss_ptr + n_R, mask=n_R < N, other=0.0).to(tl.float64)
        count_R += tl.load(count_ptr + n_R, mask=n_R < N, other=0).to(tl.int64)
        hits_R += tl.load(hits_ptr + n_R, mask=n_R < N, other=0).to(tl.int64)
    tl.store(loss_out_ptr, tl.sum(loss_R, axis=0).to(tl.float32))
    tl.store(count_out_ptr, tl.sum(count_R, axis=0))
    tl.store(hits_out_ptr, tl.sum(hits_R, axis=0))


@triton.jit
def _write_softmax(
    logits_ptr, grad_ptr, offset, grad_offset, V, logit_sv, grad_sv, top, scale,
    UNIT: tl.constexpr, PEEL: tl.constexpr, BLOCK: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """``scale`` times the softmax of a position; with ``PEEL`` both offsets are the same."""
    head = _head(offset, V, PEEL, G)
    body_ptr = _body(logits_ptr, offset, head, PEEL, G)
    grad_body_ptr = _body(grad_ptr, grad_offset, head, PEEL, G)
    column = tl.arange(0, BLOCK)
    left = V - head
    whole = left // BLOCK * BLOCK
    if PEEL:
        g = tl.arange(0, G)
        x_G = tl.load(logits_ptr + offset + g, mask=g < head, other=0.0).to(tl.float32)
        tl.store(grad_ptr + grad_offset + g, tl.exp(x_G - top) * scale, mask=g < head)
    for start in range(0, whole, BLOCK):
        x = tl.load(_at(body_ptr, start + column, logit_sv, UNIT)).to(tl.float32)
        tl.store(_at(grad_body_ptr, start + column, grad_sv, UNIT), tl.exp(x - top) * scale)
    if whole < left:
        inside = whole + column < left
        x = tl.load(_at(body_ptr, whole + column, logit_sv, UNIT), mask=inside, other=0.0).to(tl.float32)
        tl.store(_at(grad_body_ptr, whole + column, grad_sv, UNIT), tl.exp(x - top) * scale, mask=inside)


@triton.jit(do_not_specialize=_PLAIN)
def backward_kernel(
    logits_ptr, grad_ptr, targets_ptr, weights_ptr, max_ptr, sum_ptr, upstream_ptr,
    P, V, K, ignore_index, logit_sb, logit_sp, logit_sv, grad_sb, grad_sp, grad_sv,
    target_sb, target_sp, target_sk,
    WEIGHTED: tl.constexpr, UNIT: tl.constexpr, PEEL: tl.constexpr,
    BLOCK: tl.constexpr, G: tl.constexpr, K_BLOCK: tl.constexpr,
):  # fmt: skip
    """A position's gradient."""
    n = tl.program_id(0)
    b, p = (n // P).to(tl.int64), (n % P).to(tl.int64)
    target_K, valid_K, known_K, weight_K = _targets(
        targets_ptr, weights_ptr, b, p, target_sb, target_sp, target_sk, K, V, ignore_index, WEIGHTED, K_BLOCK
    )
    offset, grad_offset = b * logit_sb + p * logit_sp, b * grad_sb + p * grad_sp
    if tl.sum(valid_K.to(tl.int32), axis=0) > 0:
        upstream = tl.load(upstream_ptr).to(tl.float32)
        top = tl.load(max_ptr + n)
        scale = tl.sum(weight_K, axis=0) * upstream / tl.load(sum_ptr + n)
        _write_softmax(
            logits_ptr, grad_ptr, offset, grad_offset, V, logit_sv, grad_sv, top, scale, UNIT, PEEL, BLOCK, G
        )
        # A token that stands twice in the patch is written twice, with the same value.
        same_KK = (target_K[:, None] == target_K[None, :]) & valid_K[None, :]
        counted_K = tl.sum(tl.where(same_KK, weight_K[None, :], 0.0), axis=1)
        chosen_K = tl.load(logits_ptr + offset + target_K * logit_sv, mask=known_K, other=0.0).to(tl.float32)
        grad_K = tl.exp(chosen_K - top) * scale - counted_K * upstream
        tl.debug_barrier()  # the row is written by all threads, these by some of them
        tl.store(grad_ptr + grad_offset + target_K * grad_sv, grad_K, mask=known_K)
    else:
        column = tl.arange(0, BLOCK)
        for start in range(0, V, BLOCK):
            at = start + column
            tl.store(
                _at(grad_ptr + grad_offset, at, grad_sv, UNIT), tl.zeros([BLOCK], tl.float32), mask=at < V
            )
