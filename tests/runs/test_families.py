"""Every family trains in both stages through the real trainer, and computes the paper's equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerModel
from torch.utils.data import DataLoader

from patch_algorithm import PatchLevel
from tests.runs.families import (
    CONTEXT,
    FAMILIES,
    MIXTURES_OF_EXPERTS,
    Witness,
    family,
    plain_model,
    traces,
)
from tests.runs.reference import patch_step, token_step
from tests.support import config, metrics, mpt, train

K = 4
PATCH_STEPS = TOKEN_STEPS = 3


def run(corpus: Path, model: dict[str, Any], **changes: Any) -> tuple[Trainer, Witness]:
    """Six tiny steps, the first three in patches."""
    algorithms = {"patch_level": {"k": K, "ratio": 0.5, "seq_len": CONTEXT}, "witness": {}}
    cfg = config(corpus, model, algorithms=algorithms, **changes)
    del cfg["eval_loader"], cfg["eval_interval"]
    trainer = train(cfg)
    return trainer, next(a for a in trainer.state.algorithms if isinstance(a, Witness))


@pytest.mark.parametrize("name", FAMILIES)
def test_family_trains_in_both_stages(name: str, corpus: Path, tmp_path: Path) -> None:
    model = family(name, tmp_path)
    trainer, witness = run(corpus, model)
    plain = plain_model(model, corpus)

    assert metrics(trainer, "patch_level/stage") == [0.0] * PATCH_STEPS + [1.0] * TOKEN_STEPS
    assert metrics(trainer, "patch_level/positions_per_row") == [CONTEXT] * 6
    # In the token stage a row of k * 8 tokens is k rows of 8, so a step has k times the microbatches.
    assert witness.shapes == [(4, CONTEXT)] * (PATCH_STEPS + K * TOKEN_STEPS)
    losses = metrics(trainer, "loss/train/total")
    assert len(losses) == 6
    assert torch.isfinite(torch.tensor(losses)).all()
    check_patch_step(plain, trainer, witness, routed=name in MIXTURES_OF_EXPERTS)
    check_token_step(plain, trainer, witness)
    check_nothing_is_left(plain, trainer, witness)


def check_patch_step(plain: ComposerModel, trainer: Trainer, witness: Witness, routed: bool) -> None:
    raw = witness.raw[0]
    plain.load_state_dict(witness.weights[0])
    assert raw["input_ids"].shape == (4, K * CONTEXT)
    expected = patch_step(plain, raw["input_ids"], raw["labels"], K)
    torch.testing.assert_close(witness.logits[0], expected.logits, rtol=1e-5, atol=1e-6)
    logged = metrics(trainer, "patch_level/loss")[0]
    assert logged == pytest.approx(expected.language.item(), rel=1e-6)
    total = expected.language + expected.router
    assert metrics(trainer, "loss/train/total")[0] == pytest.approx(total.item(), rel=1e-6)
    assert (expected.router.item() > 0.1) == routed

    total.backward()
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert gradients.keys() == witness.gradients[0].keys()
    for parameter, gradient in gradients.items():
        got = witness.gradients[0][parameter]
        torch.testing.assert_close(
            got, gradient, rtol=1e-4, atol=1e-6, msg=lambda m, p=parameter: f"{p}: {m}"
        )


def check_token_step(plain: ComposerModel, trainer: Trainer, witness: Witness) -> None:
    raw = witness.raw[PATCH_STEPS]
    plain.load_state_dict(witness.weights[PATCH_STEPS])
    ids, labels = (raw[key].reshape(-1, CONTEXT) for key in ("input_ids", "labels"))
    total = 0.0
    for rows in torch.arange(16).split(4):  # router losses belong to a microbatch
        expected = token_step(plain, ids[rows], labels[rows])
        total += (expected.language + expected.router).item() / 4
    assert metrics(trainer, "loss/train/total")[PATCH_STEPS] == pytest.approx(total, rel=1e-6)


def check_nothing_is_left(plain: ComposerModel, trainer: Trainer, witness: Witness) -> None:
    assert all(keys == list(plain.state_dict()) for keys in witness.keys)
    for step in range(PATCH_STEPS):
        assert witness.traces[step] != witness.untouched  # or the comparison below shows nothing
    for after in (*witness.traces[PATCH_STEPS:], traces(trainer.state.model)):
        assert after == witness.untouched


@pytest.mark.filterwarnings("ignore:Propagating key_padding_mask")  # MPT's, for any masked batch
@pytest.mark.parametrize("name", ["mpt-tied-rope", "mpt-alibi", "llama", "gpt2", "opt", "bloom"])
def test_padded_rows(name: str, corpus: Path, tmp_path: Path) -> None:
    check_padded_step(family(name, tmp_path), corpus, row=K * CONTEXT)


@pytest.mark.filterwarnings("ignore:Propagating key_padding_mask")
def test_padded_rows_of_no_whole_number_of_patches(corpus: Path) -> None:
    check_padded_step(mpt(max_seq_len=32), corpus, row=30)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
def test_rows_padded_on_the_left(name: str, corpus: Path, tmp_path: Path) -> None:
    """There the partly padded patch is the first that is read, so its mean reaches every loss."""
    check_padded_step(family(name, tmp_path), corpus, row=K * CONTEXT, left=True)


def check_padded_step(model: dict[str, Any], corpus: Path, row: int, left: bool = False) -> None:
    """Partly and wholly padded patches: a step's loss and gradients against the reference's."""
    lengths = torch.tensor([18, 30, 7, 12])
    mask = (torch.arange(row) < lengths[:, None]).long()
    mask = mask.flip(dims=[1]) if left else mask
    ids = torch.randint(0, 94, (4, row), generator=torch.Generator().manual_seed(1))
    ids = ids.masked_fill(mask == 0, 95)
    labels = ids.masked_fill(mask == 0, -100)
    rows = [
        {"input_ids": i, "labels": y, "attention_mask": m} for i, y, m in zip(ids, labels, mask, strict=True)
    ]
    trained, witness = plain_model(model, corpus), Witness()
    trainer = Trainer(
        model=trained,
        train_dataloader=DataLoader(rows, batch_size=4),  # pyright: ignore
        max_duration="2ba",
        optimizers=torch.optim.SGD(trained.parameters(), lr=0.1),
        algorithms=[PatchLevel(k=K, ratio=0.5), witness],
        loggers=[InMemoryLogger()],
        progress_bar=False,
    )
    trainer.fit()

    plain = plain_model(model, corpus)
    plain.load_state_dict(witness.weights[0])
    missing = -row % K
    padded = [F.pad(x, (0, missing), value=v) for x, v in ((ids, 95), (labels, -100), (mask, 0))]
    expected = patch_step(plain, padded[0], padded[1], K, padded[2])
    expected.language.backward()
    assert metrics(trainer, "patch_level/loss") == pytest.approx([expected.language.item()], rel=1e-6)
    assert metrics(trainer, "loss/train/total")[0] == pytest.approx(expected.language.item(), rel=1e-6)
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    torch.testing.assert_close(witness.gradients[0], gradients, rtol=1e-4, atol=1e-6)
