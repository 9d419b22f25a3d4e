"""Real models on rows of several documents: kept apart where the model does so, in both stages."""

from __future__ import annotations

import re
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
    Documents,
    Feed,
    counted,
    dense,
    feed_of,
    fit,
    patch_logits,
    patch_loss,
    patch_owners,
    patch_pairs,
    pieces,
)
from tests.support import config, metrics, mpt, train

K, L = 4, 8
EOS = 94
APART = {"attn_uses_sequence_id": True}
STEPS = 3
pytestmark = pytest.mark.filterwarnings("ignore:Propagating key_padding_mask")  # MPT's, for any mask


def run(corpus: Path, model: dict[str, Any], **patch_level: Any) -> tuple[Trainer, Feed]:
    """Three steps of each stage on llm-foundry's text loader, told that texts end with <eos>."""
    cfg = config(corpus, model, algorithms={"patch_level": {"ratio": 0.5} | patch_level, "feed": {}})
    cfg["train_loader"]["dataset"]["eos_token_id"] = EOS
    del cfg["eval_loader"], cfg["eval_interval"]
    trainer = train(cfg)
    return trainer, feed_of(trainer)


def documents_of(ids: Tensor) -> Documents:
    """By the end-of-text tokens, which belong to the document that they end."""
    return [[row[:place].count(EOS) for place in range(len(row))] for row in ids.tolist()]


@pytest.mark.parametrize("seq_len", [pytest.param(L, marks=pytest.mark.slow), L // 2])
def test_mpt_keeps_documents_apart_in_both_stages(
    seq_len: int, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = mpt(attn_config=APART)
    trainer, feed = run(corpus, model, seq_len=seq_len)
    plain = plain_model(model, corpus)
    unread = 0
    for step in range(STEPS):
        ids = pieces(feed.raw[step]["input_ids"], K * seq_len)
        documents = documents_of(ids)
        owners = [patch_owners(row, K) for row in documents]
        fed = [batch["sequence_id"] for batch in feed.fed[: STEPS * len(ids) // 4]]
        assert torch.cat(fed)[step * len(ids) :][: len(ids)].tolist() == [dense(row) for row in owners]
        unread = unread or sum(
            row[t] != own[t // K] for row, own in zip(documents, owners, strict=True) for t in range(len(row))
        )
        plain.load_state_dict(feed.weights[step])
        plain.train()
        logits = patch_logits(plain, ids, documents, K, "sequence_id")
        # A step of cut rows has several microbatches, of as many pairs each.
        expected = patch_loss(logits, patch_pairs(ids, documents, K))
        assert metrics(trainer, "patch_level/loss")[step] == pytest.approx(expected.item(), rel=1e-6)
    check_token_steps(trainer, feed, plain, seq_len)
    said = re.findall(r"kept apart\. (\d+) of", capfd.readouterr().err)
    assert said == [str(unread)]


def check_token_steps(trainer: Trainer, feed: Feed, plain: Any, seq_len: int) -> None:
    microbatches = iter(feed.fed[-STEPS * K * L // seq_len :])
    for step in range(STEPS, 2 * STEPS):
        ids = pieces(feed.raw[step]["input_ids"], seq_len)
        sequence_id = torch.tensor([dense(row) for row in documents_of(ids)])
        for rows in sequence_id.split(4):
            assert torch.equal(next(microbatches)["sequence_id"], rows)
        plain.load_state_dict(feed.weights[step])
        logits = plain.model(input_ids=ids, sequence_id=sequence_id).logits
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        assert metrics(trainer, "loss/train/total")[step] == pytest.approx(expected.item(), rel=1e-6)
    assert next(microbatches, None) is None


def rows_of(*lengths: int, positions: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Four rows of documents of these lengths."""
    T = sum(lengths)
    ids = torch.randint(0, EOS, (4, T), generator=torch.Generator().manual_seed(seed))
    numbers = [number for number, length in enumerate(lengths) for _ in range(length)]
    rows = {"input_ids": ids, "labels": ids, "sequence_id": torch.tensor([numbers] * 4)}
    if positions:
        rows["position_ids"] = torch.tensor([counted(numbers)] * 4)
    return rows


def first_logits(plain: Any, weights: dict[str, Tensor], rows: dict[str, Tensor]) -> Tensor:
    plain.load_state_dict(weights)
    return fit(plain, rows)[1].logits[0]


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, False),
        ({}, True),
        ({"attn_config": {"rope": False, "alibi": True}}, False),
        ({"attn_config": {"rope": False}, "learned_pos_emb": True}, True),
    ],
    ids=["rope", "rope and positions", "alibi", "learned positions"],
)
def test_a_document_in_a_row_reads_as_it_does_alone(
    changes: dict[str, Any], positions: bool, corpus: Path
) -> None:
    """By hand: the last 16 tokens of a row, where patches of both rows begin at the same tokens."""
    changes = changes | {"attn_config": APART | changes.get("attn_config", {})}
    plain = plain_model(mpt(**changes), corpus)
    weights = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    packed = rows_of(9, 7, 16, positions=positions)
    start = {"sequence_id": 2, "position_ids": 0}
    alone = {key: value[:, 16:] - start.get(key, 0) for key, value in packed.items()}
    together = first_logits(plain, weights, packed)
    separate = first_logits(plain, weights, alone)
    torch.testing.assert_close(together[:, 4:], separate, rtol=1e-5, atol=1e-5)
    # Or the comparison shows nothing: without borders the same tokens read otherwise.
    whole = packed | {"sequence_id": torch.zeros_like(packed["sequence_id"])}
    assert (first_logits(plain, weights, whole)[:, 4:] - separate).abs().max() > 1e-3


def test_no_position_reads_another_document_where_patches_straddle_borders(corpus: Path) -> None:
    plain = plain_model(mpt(attn_config=APART), corpus)
    weights = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    packed = rows_of(15, 1, 5, 11)
    before = first_logits(plain, weights, packed)
    for number, places in enumerate([range(15), range(15, 16), range(16, 21), range(21, 32)]):
        ids = packed["input_ids"].clone()
        ids[:, places] = (ids[:, places] + 1) % EOS
        after = first_logits(plain, weights, packed | {"input_ids": ids, "labels": ids})
        owners = patch_owners(packed["sequence_id"][0].tolist(), K)
        changed = (after != before).any(dim=-1)
        assert changed.tolist() == [[owner == number for owner in owners]] * 4


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_positions_of_documents_restart_in_patches(
    name: str, padded: bool, corpus: Path, tmp_path: Path
) -> None:
    rows = rows_of(15, 1, 5, 11, positions=True)
    documents = rows.pop("sequence_id").tolist()
    if padded:
        documents = [[*row[:27], *[-1] * 5] for row in documents]
        rows["attention_mask"] = (torch.tensor(documents) >= 0).long()
        rows["labels"] = rows["labels"].masked_fill(rows["attention_mask"] == 0, -100)
    plain = plain_model(family(name, tmp_path), corpus)
    trainer, feed = fit(plain_model(family(name, tmp_path), corpus), rows)
    owners = [patch_owners(row, K) for row in documents]
    in_patches, *in_tokens = feed.fed
    assert in_patches["position_ids"].tolist() == [counted(row) for row in owners]
    in_pieces = [counted(row) for row in pieces(documents, L)]
    assert torch.cat([batch["position_ids"] for batch in in_tokens]).tolist() == in_pieces

    plain.load_state_dict(feed.weights[0])
    given = ("position_ids", "attention_mask") if padded else ("position_ids",)
    logits = patch_logits(plain, rows["input_ids"], documents, K, *given)
    torch.testing.assert_close(feed.logits[0], logits, rtol=1e-5, atol=1e-6)
    pairs = patch_pairs(rows["labels"], documents, K)
    assert sum(in_patches["loss_generating_tokens"]) == len(pairs)
    assert metrics(trainer, "patch_level/loss") == pytest.approx([patch_loss(logits, pairs).item()], rel=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_positions_alone_do_not_part_the_attention_of_a_hugging_face_model(
    attention: str, corpus: Path, tmp_path: Path
) -> None:
    """So it is at token level: transformers 4.51 tells documents by positions in flash attention only.

    With eager and sdpa attention a restarting position changes the rotary angles and nothing else. In
    patches it is the same model: no patch mixes two documents, but positions attend across them.
    """
    model: Any = plain_model(family("llama", tmp_path), corpus).model
    model.eval()
    model.config._attn_implementation = attention
    rows = rows_of(4, 4, positions=True)
    ids, positions = rows["input_ids"], rows["position_ids"]
    other = torch.cat([(ids[:, :4] + 1) % EOS, ids[:, 4:]], dim=1)
    one, two = (model(input_ids=x, position_ids=positions).logits[:, 4:] for x in (ids, other))
    assert (one - two).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("positions", "taken"),
    [(list(range(32)), False), ([*range(5, 25), *range(30, 42)], False), ([*range(20), *range(12)], True)],
    ids=["one document", "skipping", "restarting"],
)
def test_positions_count_where_they_restart(
    positions: list[int], taken: bool, corpus: Path, tmp_path: Path
) -> None:
    rows = rows_of(32) | {"position_ids": torch.tensor([positions] * 4)}
    del rows["sequence_id"]
    _, feed = fit(plain_model(family("llama", tmp_path), corpus), rows)
    assert ("position_ids" in feed.fed[0]) == taken


def warnings_of(corpus: Path, model: dict[str, Any], rows: dict[str, Tensor]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(plain_model(model, corpus), rows)
    return [str(warning.message) for warning in caught if "marks its documents" in str(warning.message)]


def test_one_warning_where_the_model_does_not_go_by_documents(corpus: Path, tmp_path: Path) -> None:
    two, one = rows_of(20, 12), rows_of(32)
    restarting = rows_of(20, 12, positions=True)
    del restarting["sequence_id"]
    no_positions = mpt(attn_config={"rope": False, "alibi": True})
    llama = family("llama", tmp_path)
    for model, rows in ((mpt(), two), (llama, two), (no_positions, restarting)):
        (message,) = warnings_of(corpus, model, rows)
        assert "attn_uses_sequence_id" in message
        assert "concatenated" in message
    begun = one | {"sequence_id": one["sequence_id"] + 1}  # as a row that starts with a bos token has it
    apart = mpt(attn_config=APART)
    for model, rows in ((mpt(), one), (llama, begun), (apart, two), (llama, restarting)):
        assert warnings_of(corpus, model, rows) == []


def test_separators_in_padding_are_no_documents(corpus: Path, tmp_path: Path) -> None:
    """Where the padding token is the end-of-text token, the collator counts every one."""
    rows = rows_of(32)
    rows["attention_mask"] = (torch.arange(32) < 25).long().expand(4, 32)
    rows["sequence_id"] = (torch.arange(32) - 24).clamp(min=0).expand(4, 32)
    assert warnings_of(corpus, family("llama", tmp_path), rows) == []


def test_documents_without_a_value_for_each_token_are_refused(corpus: Path, tmp_path: Path) -> None:
    rows = rows_of(32) | {"position_ids": torch.arange(4).expand(4, 4)}
    with pytest.raises(ValueError, match=r"'position_ids' of shape \(4, 4\).*\(4, 32\)"):
        fit(plain_model(family("llama", tmp_path), corpus), rows)


def test_mpt_on_rows_padded_on_the_left_is_refused_at_once(corpus: Path) -> None:
    """Its own error would come at the switch: with less than a patch of padding no position is masked."""
    rows = rows_of(32)
    rows["attention_mask"] = (torch.arange(32) >= 3).long().expand(4, 32)
    with pytest.raises(ValueError, match=r"padded on the left.*padding_side"):
        fit(plain_model(mpt(), corpus), rows)


@pytest.mark.parametrize("changes", [{"patch_inputs": False}, {"patch_targets": False}], ids=str)
def test_one_sided_patches_keep_documents_apart(changes: dict[str, bool], corpus: Path) -> None:
    plain = plain_model(mpt(attn_config=APART), corpus)
    size = K if changes.get("patch_inputs", True) else 1
    rows = rows_of(5, 3, 8 * size - 8) if size > 1 else rows_of(5, 3)
    _, feed = fit(plain_model(mpt(attn_config=APART), corpus), rows, **changes)
    plain.load_state_dict(feed.weights[0])
    plain.train()
    logits = patch_logits(plain, rows["input_ids"], rows["sequence_id"].tolist(), size, "sequence_id")
    torch.testing.assert_close(feed.logits[0], logits, rtol=1e-5, atol=1e-6)
