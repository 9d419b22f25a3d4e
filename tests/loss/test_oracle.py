"""The package's fold, mean and loss against the paper's equations, in float64.

Shapes: B rows, T tokens, K patch size, P positions, D hidden size, V vocabulary, N = B * P.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from patch_algorithm.loss import PatchLoss, patch_cross_entropy
from patch_algorithm.patching import (
    PATCH_IDS,
    PATCH_MASK,
    PATCH_TARGETS,
    fold_batch,
    mean_of_patch,
)
from tests.oracle import (
    IGNORED,
    TinyModel,
    naive_loss,
    paper_loss,
    random_labels,
    random_logits,
    relative_difference,
)

SAME = 1e-10


def our_loss(model: TinyModel, batch: dict[str, Any], k: int) -> PatchLoss:
    folded = fold_batch(batch, k)
    embeds_BPKD = model.embedding_VD[folded[PATCH_IDS]]
    embeds_BPD = mean_of_patch(embeds_BPKD, folded.get(PATCH_MASK))
    logits_BPV = model.logits(embeds_BPD, folded.get("attention_mask"))
    return patch_cross_entropy(logits_BPV, folded[PATCH_TARGETS])


def gradients(model: TinyModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_agree(model: TinyModel, batch: dict[str, Any], k: int) -> None:
    masks = batch["attention_mask"].tolist() if "attention_mask" in batch else None
    expected, terms = paper_loss(model, batch["input_ids"].tolist(), batch["labels"].tolist(), k, masks)
    ours = our_loss(model, batch, k)
    assert int(ours.count) == terms > 0
    assert relative_difference(ours.sum.detach(), expected.detach()) < SAME
    pairs = zip(gradients(model, ours.sum), gradients(model, expected), strict=True)
    for actual, wanted in pairs:
        assert float(wanted.abs().max()) > 0
        assert relative_difference(actual, wanted) < SAME


@pytest.mark.parametrize("ignored", [0.0, 0.4], ids=["all scored", "some ignored"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("V", "P"), [(37, 7), (123, 3), (507, 5)])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 8])
def test_loss_and_gradients_equal_the_paper(k: int, V: int, P: int, tied: bool, ignored: float) -> None:
    model = TinyModel(V, D=5, tied=tied, seed=k)
    ids_BT = random_labels(seed=V, shape=(3, P * k), V=V, ignored=0)
    hidden = random_labels(seed=V + 1, shape=(3, P * k), V=V, ignored=ignored) == IGNORED
    batch = {"input_ids": ids_BT, "labels": ids_BT.masked_fill(hidden, IGNORED)}
    assert_agree(model, batch, k)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("T", [24, 29], ids=["full patches", "padded to full patches"])
@pytest.mark.parametrize("k", [2, 3, 4, 8])
def test_padded_rows_equal_the_paper_on_their_real_tokens(k: int, T: int, side: str) -> None:
    model = TinyModel(V=37, D=5, tied=True)
    ids_BT = random_labels(seed=3, shape=(4, T), V=37, ignored=0)
    padding_BT = torch.arange(T) >= torch.tensor([T, T - 1, 13, 9])[:, None]
    mask_BT = (~padding_BT if side == "right" else ~padding_BT.flip(1)).long()
    labels_BT = ids_BT.masked_fill(mask_BT == 0, IGNORED)
    batch = {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT}
    assert_agree(model, batch, k)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_microbatches_add_up_to_the_batch(rows: int) -> None:
    k, model = 3, TinyModel(V=37, D=5, tied=False)
    ids_BT = random_labels(seed=1, shape=(6, 15), V=37, ignored=0)
    labels_BT = random_labels(seed=2, shape=(6, 15), V=37, ignored=0.5)
    whole = our_loss(model, {"input_ids": ids_BT, "labels": labels_BT}, k)
    parts = [
        our_loss(model, {"input_ids": ids, "labels": labels}, k)
        for ids, labels in zip(ids_BT.split(rows), labels_BT.split(rows), strict=True)
    ]
    assert len({int(part.count) for part in parts}) > 1, "unequal counts make this case worth it"
    assert sum(int(part.count) for part in parts) == int(whole.count)
    assert sum(int(part.hits) for part in parts) == int(whole.hits)
    total = torch.stack([part.sum for part in parts]).sum()
    assert relative_difference(total.detach(), whole.sum.detach()) < SAME
    for actual, wanted in zip(gradients(model, total), gradients(model, whole.sum), strict=True):
        assert relative_difference(actual, wanted) < SAME


def test_an_example_computed_by_hand() -> None:
    """V=3, T=4, K=2: the patch (0, 2) is followed by the patch (1, 1).

    Embeddings 0 -> (2, 0, 0), 1 -> (0, 5, 0), 2 -> (0, 0, 4); the model is the identity, so the
    logits of the first position are their mean (1, 0, 2). Token 1 is scored twice:

        loss = 2 * (ln(e^1 + e^0 + e^2) - 0)
        d loss / d logits = 2 * (e, 1, e^2) / (e + 1 + e^2) - (0, 2, 0)

    and each embedding in the patch receives half of it. The second position predicts nothing.
    """
    table_VD = torch.tensor(
        [[2.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64
    ).requires_grad_()
    ids_BT = torch.tensor([[0, 2, 1, 1]])
    folded = fold_batch({"input_ids": ids_BT, "labels": ids_BT}, k=2)
    logits_BPV = mean_of_patch(table_VD[folded[PATCH_IDS]])
    loss = patch_cross_entropy(logits_BPV, folded[PATCH_TARGETS])
    loss.sum.backward()

    assert logits_BPV[0].tolist() == [[1.0, 0.0, 2.0], [0.0, 5.0, 0.0]]
    partition = math.e + 1 + math.e**2
    assert float(loss.sum) == pytest.approx(2 * math.log(partition), rel=1e-14)
    assert (int(loss.count), int(loss.hits)) == (2, 0)
    assert float(loss.mean) == pytest.approx(math.log(partition), rel=1e-14)
    half = [math.e / partition, 1 / partition - 1, math.e**2 / partition]
    assert table_VD.grad is not None
    for token, expected in ((0, half), (1, [0.0, 0.0, 0.0]), (2, half)):
        assert table_VD.grad[token].tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("V", [507, 50257])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_low_precision_logits_are_scored_in_float32(dtype: torch.dtype, V: int) -> None:
    logits_NV = random_logits(5, 6, V, dtype=dtype)
    targets_NK = random_labels(seed=6, shape=(6, 4), V=V, ignored=0.2)
    exact_NV = logits_NV.detach().double().requires_grad_()
    expected, terms, hits = naive_loss(exact_NV, targets_NK)
    loss = patch_cross_entropy(logits_NV, targets_NK)
    assert loss.sum.dtype is torch.float32
    assert (int(loss.count), int(loss.hits)) == (terms, hits)
    assert abs(float(loss.mean.detach()) - float(expected.detach()) / terms) < 1e-5

    loss.sum.backward()
    expected.backward()
    assert logits_NV.grad is not None
    assert exact_NV.grad is not None
    assert logits_NV.grad.dtype is dtype
    # The result is rounded once, to the dtype of the logits: half a unit in the last place, plus
    # the least positive number of float16.
    torch.testing.assert_close(
        logits_NV.grad.double(), exact_NV.grad, rtol=0.51 * torch.finfo(dtype).eps + 2e-6, atol=6e-8
    )


@pytest.mark.parametrize("ignored", [0.0, 0.5])
def test_gradcheck(ignored: float) -> None:
    logits_NV = random_logits(7, 5, 11)
    targets_NK = random_labels(seed=8, shape=(5, 3), V=11, ignored=ignored)
    assert torch.autograd.gradcheck(lambda z: patch_cross_entropy(z, targets_NK).sum, (logits_NV,))


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_of_the_mean(masked: bool) -> None:
    embeds_BPKD = random_logits(9, 2, 3, 4, 2)
    mask_BPK = (random_labels(seed=10, shape=(2, 3, 4), V=2, ignored=0)) if masked else None
    assert torch.autograd.gradcheck(lambda e: mean_of_patch(e, mask_BPK), (embeds_BPKD,))
