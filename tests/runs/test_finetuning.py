"""llm-foundry's finetuning data loader, padded and packed, trains in patches in both stages.

Its rows are prompts and responses, as in continued pre-training on pairs of texts: only responses are
scored, ``sequence_id`` comes with every batch, and rows are padded on the tokenizer's side.
"""

from __future__ import annotations

import json
import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import Trainer
from torch import Tensor

from tests.runs.families import family, plain_model
from tests.runs.packed import (
    PADDING,
    Documents,
    Feed,
    dense,
    feed_of,
    patch_logits,
    patch_loss,
    patch_owners,
    patch_pairs,
    pieces,
)
from tests.support import ROW, config, metrics, mpt, train

K, L = 4, 8
STEPS = 2
APART = mpt(attn_config={"attn_uses_sequence_id": True})
pytestmark = [
    pytest.mark.filterwarnings("ignore:Propagating key_padding_mask"),  # MPT's, for any mask
    pytest.mark.filterwarnings("ignore:MPT received non-None input for `sequence_id`"),  # at token level
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 96 pairs of prompts and responses of 3 to 14 words together."""
    folder = tmp_path_factory.mktemp("pairs")
    draw = random.Random(0)
    with (folder / "train.jsonl").open("w") as lines:
        for _ in range(96):
            words = [f"w{draw.randrange(94)}" for _ in range(draw.randint(3, 14))]
            border = draw.randint(1, len(words) - 2)
            pair = {"prompt": " ".join(words[:border]), "response": " " + " ".join(words[border:])}
            lines.write(json.dumps(pair) + "\n")
    return folder


@pytest.fixture(autouse=True)
def one_process_reads_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """llm-foundry starts a process for every second core of the machine to tokenize 96 lines."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


def run(
    corpus: Path, pairs: Path, model: dict[str, Any], side: str = "right", packing: float = 1, **changes: Any
) -> tuple[Trainer, Feed]:
    """Two steps of each stage on four rows of 32 tokens."""
    algorithms = {"patch_level": {"k": K, "ratio": 0.5, "seq_len": L}, "feed": {}}
    cfg = config(corpus, model, algorithms=algorithms, max_duration=f"{2 * STEPS}ba", **changes)
    cfg["tokenizer"]["kwargs"]["padding_side"] = side
    cfg["train_loader"] |= {"name": "finetuning", "drop_last": True}
    cfg["train_loader"]["dataset"] = {
        "hf_name": str(pairs),
        "split": "train",
        "hf_kwargs": {"cache_dir": str(pairs / "cache")},
        "max_seq_len": ROW,
        "decoder_only_format": True,
        "packing_ratio": packing,
        "shuffle": False,
    }
    del cfg["eval_loader"], cfg["eval_interval"]
    trainer = train(cfg)
    return trainer, feed_of(trainer)


def documents_of(raw: dict[str, Tensor], apart: bool) -> Documents:
    """A row's documents as the collator numbers them, or as one where the model does not part them."""
    numbers = raw["sequence_id"] if apart else torch.zeros_like(raw["sequence_id"])
    return numbers.masked_fill(raw["attention_mask"] == 0, PADDING).tolist()


QUICK = [("mpt apart", 3), ("llama left", 1)]
CASES = [(name, packing) for name in ("mpt", "mpt apart", "llama", "llama left") for packing in (1, 3)]


@pytest.mark.parametrize(
    ("name", "packing"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_pairs_train_in_both_stages(
    name: str, packing: int, corpus: Path, pairs: Path, tmp_path: Path
) -> None:
    side, apart = "left" if "left" in name else "right", "apart" in name
    model = family("llama", tmp_path) if "llama" in name else APART if apart else mpt()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, feed = run(corpus, pairs, model, side, packing)
    told = [warning for warning in caught if "marks its documents" in str(warning.message)]
    assert len(told) == (1 if packing > 1 and not apart else 0)
    plain = plain_model(model, corpus).train()
    check_rows(feed, side, packing)
    check_patch_steps(trainer, feed, plain, apart)
    check_token_steps(trainer, feed, plain, apart)
    assert trainer.state.timestamp.token == sum(int(raw["attention_mask"].sum()) for raw in feed.raw)


def check_rows(feed: Feed, side: str, packing: int) -> None:
    """What the loader gives is what the test means to show."""
    for raw in feed.raw:
        mask = raw["attention_mask"].bool()
        assert raw["input_ids"].shape == (4, ROW)
        assert not mask.all()
        assert bool(mask[:, -1 if side == "left" else 0].all())
        assert int(raw["sequence_id"].max()) >= (1 if packing > 1 else 0)
        assert 0 < int((raw["labels"] != -100).sum()) < int(mask.sum())


def check_patch_steps(trainer: Trainer, feed: Feed, plain: Any, apart: bool) -> None:
    for step in range(STEPS):
        raw, fed = feed.raw[step], feed.fed[step]
        documents = documents_of(raw, apart)
        plain.load_state_dict(feed.weights[step])
        given = ["attention_mask", *(["sequence_id"] if apart else [])]
        logits = patch_logits(plain, raw["input_ids"], documents, K, *given)
        scored = patch_pairs(raw["labels"], documents, K)
        assert sum(fed["loss_generating_tokens"]) == len(scored)
        assert sum(fed["total_tokens"]) == int(raw["attention_mask"].sum())
        expected = patch_loss(logits, scored)
        assert metrics(trainer, "patch_level/loss")[step] == pytest.approx(expected.item(), rel=1e-6)
        if apart:
            owners = [patch_owners(row, K) for row in documents]
            assert fed["sequence_id"].tolist() == [dense(row) for row in owners]


def check_token_steps(trainer: Trainer, feed: Feed, plain: Any, apart: bool) -> None:
    """A row of 32 tokens is cut into four of 8, some of nothing but padding."""
    for step in range(STEPS, 2 * STEPS):
        raw = feed.raw[step]
        ids, labels, mask = (pieces(raw[key], L) for key in ("input_ids", "labels", "attention_mask"))
        mask = mask.clone()
        mask[:, 0] |= mask.sum(dim=1) == 0
        told = {}
        if apart:
            numbers = pieces(raw["sequence_id"], L).masked_fill(mask == 0, PADDING)
            told["sequence_id"] = torch.tensor([dense(row) for row in numbers.clamp(min=-1).tolist()])
            told["sequence_id"][:, 0] = 0
        plain.load_state_dict(feed.weights[step])
        logits = plain.model(input_ids=ids, attention_mask=mask, **told).logits
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        fed = feed.fed[STEPS + (step - STEPS) * 4 :][:4]
        scored = sum(sum(batch["loss_generating_tokens"]) for batch in fed)
        assert scored == int((labels[:, 1:] != -100).sum())
        assert metrics(trainer, "loss/train/total")[step] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.slow
def test_microbatches_of_packed_pairs_give_the_same_run(corpus: Path, pairs: Path) -> None:
    losses = []
    for size in (1, 4):
        trainer, _ = run(corpus, pairs, APART, packing=3, device_train_microbatch_size=size)
        losses.append(metrics(trainer, "loss/train/total"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_mpt_refuses_pairs_padded_on_the_left_before_it_trains(corpus: Path, pairs: Path) -> None:
    with pytest.raises(ValueError, match=r"padded on the left.*padding_side: right"):
        run(corpus, pairs, mpt(), side="left")
