"""The pile loader's rows: as long as asked for, whole, and for evaluation cut without losing a token."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.data.loader.written import (
    batches,
    build,
    load,
    random_rows,
    rows_of,
    torch_loader,
    write_dataset,
    write_stream,
)
from tests.support import ROW, config, metrics, mpt, train

UNCHECKED = "it cannot be checked"


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    return load(corpus)


@pytest.fixture(scope="module")
def data(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = {(None, "train"): random_rows(64, 32), (None, "val"): random_rows(13, 32, seed=5)}
    return write_dataset(folder, tokenizer, rows)


def test_batches_are_those_of_the_text_loader(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    from llmfoundry.data.text_data import build_text_dataloader

    dataset = {"local": str(data), "split": "train", "shuffle": True, "shuffle_seed": 3, "max_seq_len": 32}
    others = {"drop_last": False, "num_workers": 0, "pin_memory": False}
    stock = build_text_dataloader(
        tokenizer, 4, dict(dataset), prefetch_factor=None, persistent_workers=False, **others
    )
    ours = build(tokenizer, **dataset)
    pairs = list(zip(ours.dataloader, stock.dataloader, strict=True))
    assert len(pairs) == len(torch_loader(ours)) == 16
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in ("input_ids", "labels"))
        assert mine["total_tokens"] == theirs["total_tokens"]
        assert ours.get_num_tokens_in_batch(mine) == stock.get_num_tokens_in_batch(theirs) == 4 * 32


def test_longer_rows_are_refused_for_training(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        ValueError, match=r"train_loader\.dataset\.max_seq_len is 8, but the rows have 32 "
    ) as e:
        build(tokenizer, local=str(data), max_seq_len=8)
    assert "drop the last 24 of each. Set it to 32" in str(e.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_shorter_rows_are_refused_everywhere(
    split: str, data: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=r"max_seq_len is 64, but the rows have 32 tokens\. Set it to 32"):
        build(tokenizer, local=str(data), split=split, max_seq_len=64)


@pytest.mark.parametrize(
    ("column", "dtype", "options"),
    [
        ("ndarray:uint16", "uint16", {}),
        ("ndarray:int32", "int32", {}),
        ("ndarray", "uint32", {}),
        ("bytes", "int64", {}),
        ("bytes", "uint16", {"token_encoding_type": "uint16"}),
    ],
)
def test_other_columns_are_read_and_checked(
    column: str, dtype: str, options: dict[str, Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = random_rows(6, 16).astype(dtype)
    write_stream(tmp_path / "train", rows, column=column)
    with pytest.warns(UserWarning, match=UNCHECKED):
        found = rows_of(build(tokenizer, local=str(tmp_path), max_seq_len=16, **options))
    assert found == rows.tolist()
    with (
        pytest.warns(UserWarning, match=UNCHECKED),
        pytest.raises(ValueError, match="is 8, but the rows have 16"),
    ):
        build(tokenizer, local=str(tmp_path), max_seq_len=8, **options)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 9), pieces=st.integers(1, 6), piece=st.sampled_from([2, 5]), batch=st.integers(1, 9)
)
def test_cutting_loses_and_repeats_nothing(
    rows: int, pieces: int, piece: int, batch: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    whole = random_rows(rows, pieces * piece)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), tokenizer, {(None, "val"): whole})
        spec = build(tokenizer, batch, local=folder, split="val", max_seq_len=piece)
        found = batches(spec)
    assert torch.cat(found).tolist() == whole.reshape(-1, piece).tolist()
    assert len(found) == len(torch_loader(spec)) == -(-rows * pieces // batch)
    assert [len(ids) for ids in found[:-1]] == [batch] * (len(found) - 1)


def test_counts_of_cut_rows(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    spec = build(tokenizer, 6, local=str(data), split="val", max_seq_len=8)
    assert spec.num_samples == 13 * 4
    for batch in spec.dataloader:
        rows = len(batch["input_ids"])
        assert spec.get_num_samples_in_batch(batch) == rows
        assert spec.get_num_tokens_in_batch(batch) == rows * 8
        assert batch["total_tokens"] == [8] * rows
        assert [int(n) for n in batch["loss_generating_tokens"]] == [7] * rows


def test_two_workers_cut_every_row_once(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    spec = build(tokenizer, 6, workers=2, local=str(data), split="val", max_seq_len=8)
    found = batches(spec)
    expected = random_rows(13, 32, seed=5).reshape(-1, 8).tolist()
    assert sorted(torch.cat(found).tolist()) == sorted(expected)
    assert len(found) == len(torch_loader(spec)) == 9


def test_rows_that_cannot_be_cut_whole_are_refused(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    message = r"eval_loader\.dataset\.max_seq_len is 12, but the rows have 32 .* a divisor of 32 such as 8"
    with pytest.raises(ValueError, match=message):
        build(tokenizer, local=str(data), split="val", max_seq_len=12)


def test_long_rows_says_otherwise(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    cut = build(tokenizer, local=str(data), max_seq_len=8, long_rows="cut")
    assert rows_of(cut) == random_rows(64, 32).reshape(-1, 8).tolist()
    with pytest.raises(ValueError, match=r"eval_loader.*is 8, but the rows have 32"):
        build(tokenizer, local=str(data), split="val", max_seq_len=8, long_rows="refuse")
    with pytest.raises(ValueError, match=r"dataset\.long_rows is 'drop'; expected refuse or cut"):
        build(tokenizer, local=str(data), max_seq_len=8, long_rows="drop")


def test_resuming_cut_rows_goes_on_where_it_was(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def fresh() -> Any:
        options = {"split": "val", "max_seq_len": 8, "shuffle": True}
        return torch_loader(build(tokenizer, 8, local=str(data), **options))

    first = fresh()
    seen = [batch["input_ids"] for batch in first]
    stopped = fresh()
    iterator = iter(stopped)
    for _ in range(2):
        next(iterator)
    state = stopped.dataset.state_dict(16, True)
    resumed = fresh()
    resumed.dataset.load_state_dict(state)
    rest = [batch["input_ids"] for batch in resumed]
    assert torch.equal(torch.cat(rest), torch.cat(seen[2:]))


def test_a_row_of_another_length_is_refused_when_it_is_read(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(tmp_path / "train"), columns={"tokens": "ndarray:uint16"}) as out:
        for length in (16, 16, 16, 15):
            out.write({"tokens": np.zeros(length, np.uint16)})
    with pytest.warns(UserWarning, match=UNCHECKED):
        loader = iter(build(tokenizer, 2, local=str(tmp_path), max_seq_len=16).dataloader)
    assert next(loader)["input_ids"].shape == (2, 16)
    with pytest.raises(
        ValueError, match=r"has 15 tokens, but .*train_loader\.dataset\.max_seq_len asks for 16"
    ):
        next(loader)


def test_ids_beyond_the_vocabulary_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = random_rows(4, 8)
    rows[2, 3] = len(tokenizer)
    write_stream(tmp_path / "train", rows)
    with pytest.warns(UserWarning, match=UNCHECKED):
        loader = build(tokenizer, 1, local=str(tmp_path), max_seq_len=8).dataloader
    with pytest.raises(ValueError, match=r"ids from \d+ to 96, but the largest id of the tokenizer is 95"):
        list(loader)


def test_streams_of_different_lengths_are_refused(
    data: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    write_dataset(tmp_path, tokenizer, {(None, "train"): random_rows(4, 16)})
    streams = {"a": {"local": str(data)}, "b": {"local": str(tmp_path)}}
    with pytest.raises(ValueError, match=r"rows of several lengths: 32 in .*, 16 in "):
        build(tokenizer, streams=streams, max_seq_len=32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_seqlen": 8}, "unknown keys max_seqlen; known are "),
        ({"max_seq_len": None}, "max_seq_len is None; expected the length of a row"),
        ({"max_seq_len": 8.5}, "max_seq_len is 8.5"),
        ({"max_seq_len": math.inf}, "max_seq_len is inf"),
        ({"max_seq_len": math.nan}, "max_seq_len is nan"),
        ({"max_seq_len": True}, "max_seq_len is True"),
        ({"split": "test"}, r"eval_loader\.dataset\.split is 'test'; .* has train, val"),
        ({"split": None}, "split is None; .* has train, val"),
        ({"local": None}, "needs either streams, or local or remote or both. It has split"),
        ({"local": "missing"}, "local: there is no folder missing"),
        ({"streams": {"a": {"local": "x"}}}, "It has streams, local, split"),
        ({"validate_hash": "sha512"}, "validate_hash is 'sha512'; the index of the dataset has sha1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    changes: dict[str, Any], words: str, data: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=words):
        build(tokenizer, **({"local": str(data), "max_seq_len": 32} | changes))


def test_a_damaged_index_is_named(data: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    (index := tmp_path / "data" / "train" / "index.json").write_text('{"shards": [')
    with pytest.raises(ValueError, match=rf"train_loader\.dataset: {index} is damaged"):
        build(tokenizer, local=str(tmp_path / "data"), split="train", max_seq_len=32)


def test_an_empty_folder_is_no_data_set(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=UNCHECKED), pytest.raises(ValueError, match="no MDS dataset in"):
        build(tokenizer, local=str(tmp_path), max_seq_len=32)


def test_text_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(tmp_path / "train"), columns={"text": "str"}) as out:
        out.write({"text": "w1 w2"})
    with (
        pytest.warns(UserWarning, match=UNCHECKED),
        pytest.raises(ValueError, match="patch-level data convert"),
    ):
        build(tokenizer, local=str(tmp_path), max_seq_len=32)


def pile_config(corpus: Path, data: Path, **changes: Any) -> dict[str, Any]:
    cfg = config(corpus, mpt(), **changes)
    for loader in (cfg["train_loader"], cfg["eval_loader"]):
        loader["name"] = "pile"
        loader["dataset"]["local"] = str(data)
    return cfg


def test_losses_of_cut_rows_are_those_of_short_rows(
    corpus: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    train_rows = random_rows(32, ROW)
    losses: list[list[float]] = []
    for length in (ROW, 8):
        rows = random_rows(10, ROW, seed=7).reshape(-1, length)
        folder = write_dataset(
            tmp_path / str(length), tokenizer, {(None, "train"): train_rows, (None, "val"): rows}
        )
        changes: dict[str, Any] = {"algorithms": {"patch_level": {"k": 4, "ratio": 0.5}}}
        changes |= {"max_duration": "2ba", "eval_interval": "2ba", "device_eval_batch_size": 3}
        losses.append(
            metrics(train(pile_config(corpus, folder, **changes)), "metrics/eval/LanguageCrossEntropy")
        )
    assert len(losses[0]) == 2, "at the switch and at the end"
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("k", "seq_len"), [(4, 4), pytest.param(2, 8, marks=pytest.mark.slow)])
def test_rows_of_one_length_serve_every_k(k: int, seq_len: int, corpus: Path, data: Path) -> None:
    algorithms = {"patch_level": {"k": k, "ratio": 0.5, "seq_len": seq_len}}
    trainer = train(pile_config(corpus, data, algorithms=algorithms, max_duration="4ba"))
    assert trainer.state.timestamp.token == 4 * 4 * ROW
    assert metrics(trainer, "patch_level/positions_per_row") == [seq_len] * 4
    assert len(metrics(trainer, "patch_level/loss")) == 2
