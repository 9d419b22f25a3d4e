"""Rows and batches that do not suit the stages of a run."""

from __future__ import annotations

import pytest

from patch_algorithm.checks.rows import (
    BatchFacts,
    RowFacts,
    check_batches,
    check_eval_rows,
    check_row_length,
)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (RowFacts(T=512, L=128, K=4, last_K=4), []),
        (RowFacts(T=1024, L=128, K=4, last_K=4), []),
        (RowFacts(T=128, L=128, K=1, last_K=1), []),
        (RowFacts(T=128, L=128, K=4, last_K=4), ["rows-of-context"]),
        (RowFacts(T=256, L=128, K=4, last_K=4), ["rows-of-context"]),
        (RowFacts(T=512, L=128, K=8, last_K=4), ["rows-of-context"]),
        (RowFacts(T=128, L=128, K=4, last_K=4, rehearsed=False), ["rows-of-context", "switch-not-rehearsed"]),
        (RowFacts(T=512, L=128, K=4, last_K=4, rehearsed=False), []),
        (RowFacts(T=512, L=None, K=4, last_K=4), ["rows-not-cut"]),
    ],
)
def test_row_length(rows: RowFacts, expected: list[str]) -> None:
    assert [one.id for one in check_row_length(rows)] == expected


def test_rows_of_the_context_are_told_what_would_be_better() -> None:
    (found,) = check_row_length(RowFacts(T=2048, L=2048, K=4, last_K=4))
    assert "trains on 512 positions per row, the token stage on 2048" in found.found
    assert "4-fold" in found.why
    assert "--row-tokens 8192" in found.fix
    assert "divide global_train_batch_size by 4" in found.fix


def test_eval_rows() -> None:
    (found,) = check_eval_rows("eval_loader.dataset", 512, 128)
    assert found.id == "eval-rows-beyond-context"
    assert found.found.startswith("eval_loader.dataset.max_seq_len=512")
    assert not check_eval_rows("eval_loader.dataset", 128, 128)
    assert not check_eval_rows("eval_loader.dataset", 128, None)
    assert not check_eval_rows("eval_loader.dataset", None, 128)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (BatchFacts(8, 4), []),
        (BatchFacts(8, "auto", 4), []),
        (BatchFacts(None, None), []),
        (BatchFacts(8, 0.5), ["microbatch-not-whole"]),
        (BatchFacts(8, 2, 3), ["batch-not-divisible"]),
        (BatchFacts(8, 4, 4), ["microbatch-larger-than-batch"]),
    ],
)
def test_batches(batches: BatchFacts, expected: list[str]) -> None:
    assert [one.id for one in check_batches(batches)] == expected
