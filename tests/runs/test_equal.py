"""Updates that do not depend on how a batch is split, with padding and ignored labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.utils import dist

from patch_algorithm import PatchLevel
from tests.runs.short import (
    Row,
    make_model,
    make_padded_rows,
    make_rows,
    relative_difference,
    run,
)
from tests.support import config, metrics, mpt, train, weights, write_corpus


def ignored_without_mask(number: int, T: int) -> list[Row]:
    """Rows with ignored labels, unevenly, and no attention mask: llm-foundry's where pad is eos."""
    rows = make_padded_rows(number, T)
    return [{key: row[key] for key in ("input_ids", "labels")} for row in rows]


ROWS = {
    "padded": make_padded_rows(24, 16),
    "padded to no multiple of k": make_padded_rows(24, 14),
    "padded and cut": make_padded_rows(24, 32),
    "ignored": ignored_without_mask(24, 16),
}


def assert_equal(trainer: Trainer, reference: Trainer, steps: int) -> None:
    for name in ("loss/train/total", "patch_level/loss", "patch_level/token_accuracy"):
        expected = metrics(reference, name)
        assert len(metrics(trainer, name)) == len(expected) > 0
        assert metrics(trainer, name) == pytest.approx(expected, rel=1e-6), name
    assert len(metrics(reference, "loss/train/total")) == steps
    for (name, left), right in zip(weights(trainer).items(), weights(reference).values(), strict=True):
        assert (left - right).norm() <= 1e-6 * right.norm(), name


@pytest.mark.parametrize("kind", ROWS)
def test_microbatches_of_1_2_and_4_rows_are_equal(kind: str) -> None:
    # SGD: Adam would blow rounding up where a gradient is nearly zero.
    context = 8 if kind == "padded and cut" else 32
    trainers = [
        run(
            ROWS[kind],
            [PatchLevel(k=4, ratio=0.5)],
            model=make_model(max_seq_len=context),
            optimizer=torch.optim.SGD,
            lr=0.1,
            max_duration="6ba",
            device_train_microbatch_size=microbatch,
        )
        for microbatch in (4, 2, 1)
    ]
    for trainer in trainers[1:]:
        assert_equal(trainer, trainers[0], steps=6)


@pytest.fixture(scope="module")
def row_losses() -> tuple[list[float], list[int]]:
    """The patch loss of each of four padded rows alone, and the number of its valid pairs."""
    rows = ROWS["padded"][:4]
    alone = [run([row], [PatchLevel(k=4, ratio=1.0)], batch=1, max_duration="1ba") for row in rows]
    pairs = []
    for row in rows:
        # Patch 0 predicts patch 1 and so on: all labels but the first patch's count, where a real
        # patch stands before them.
        labels_PK = row["labels"].view(4, 4)
        before_P = row["attention_mask"].view(4, 4)[:-1].any(dim=1)
        pairs.append(int(((labels_PK[1:] != -100) & before_P[:, None]).sum()))
    return [metrics(trainer, "loss/train/total")[0] for trainer in alone], pairs


@pytest.mark.filterwarnings("ignore:The switch at")
@pytest.mark.parametrize("on_tokens", [True, False], ids=["token-weighted", "sample-weighted"])
def test_microbatches_are_weighted_as_the_trainer_is_told(
    row_losses: tuple[list[float], list[int]], on_tokens: bool
) -> None:
    trainer = run(
        ROWS["padded"],
        [PatchLevel(k=4, ratio=1.0)],
        max_duration="1ba",
        device_train_microbatch_size=1,
        accumulate_train_batch_on_tokens=on_tokens,
    )
    losses, pairs = row_losses
    shares = pairs if on_tokens else [1] * 4
    expected = sum(loss * share for loss, share in zip(losses, shares, strict=True)) / sum(shares)
    logged = metrics(trainer, "loss/train/total")
    assert relative_difference(logged, [expected]) < 1e-6
    by_tokens = sum(a * b for a, b in zip(losses, pairs, strict=True)) / sum(pairs)
    assert relative_difference(metrics(trainer, "patch_level/loss"), [by_tokens]) < 1e-6
    assert relative_difference([expected], [by_tokens]) > 1e-4 or on_tokens


def test_loader_without_counts_is_weighted_by_rows() -> None:
    # Composer then counts positions, padded ones too; whether it was told to weight by tokens, or how
    # its loader counts, an algorithm cannot see.
    told, untold = (
        run(
            ROWS["padded"],
            [PatchLevel(k=4, ratio=0.5)],
            max_duration="6ba",
            device_train_microbatch_size=1,
            accumulate_train_batch_on_tokens=on_tokens,
            counts=False,
        )
        for on_tokens in (True, False)
    )
    assert metrics(told, "loss/train/total") == pytest.approx(metrics(untold, "loss/train/total"), rel=1e-6)


def test_padding_changes_nothing() -> None:
    rows = make_rows(16, 8)
    padded: list[dict[str, Any]] = [
        {
            "input_ids": torch.nn.functional.pad(row["input_ids"], (0, 8), value=95),
            "labels": torch.nn.functional.pad(row["labels"], (0, 8), value=-100),
            "attention_mask": (torch.arange(16) < 8).long(),
        }
        for row in rows
    ]
    short, long = (run(data, [PatchLevel(k=4, ratio=0.5)], max_duration="4ba") for data in (rows, padded))
    losses = metrics(short, "loss/train/total")
    assert relative_difference(metrics(long, "loss/train/total"), losses) < 1e-6


def test_collator_where_pad_is_end_of_text(tmp_path: Path) -> None:
    # llm-foundry's collator ignores every label that equals the pad id. Where that is the end of
    # text, as with GPT-2's tokenizer, ordinary rows have ignored labels here and there.
    corpus = write_corpus(tmp_path, rows=32)
    settings = (
        corpus / "tokenizer" / "special_tokens_map.json",
        corpus / "tokenizer" / "tokenizer_config.json",
    )
    for file in settings:
        file.write_text(file.read_text().replace('"pad_token": "<pad>"', '"pad_token": "<eos>"'))
    losses = {}
    for microbatch in (4, 1):
        trainer = train(
            config(
                corpus,
                mpt(),
                max_duration="4ba",
                device_train_microbatch_size=microbatch,
                algorithms={"patch_level": {"k": 4, "ratio": 0.5}},
            )
        )
        losses[microbatch] = metrics(trainer, "loss/train/total")
    assert (trainer.state.batch["labels"] == -100).any()
    assert relative_difference(losses[1], losses[4]) < 1e-5
    assert dist.get_world_size() == 1
