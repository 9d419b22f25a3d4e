"""Rows from elsewhere: an S3 server, caches, and shards that arrive damaged."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from patch_algorithm.data.loader.streams import ShardError
from tests.data.loader.store import Store, serving
from tests.data.loader.test_rows import pile_config
from tests.data.loader.written import build, load, random_rows, rows_of, write_dataset, write_stream
from tests.support import metrics, train

ROWS = random_rows(64, 32)
# Four shards of 16 rows.
SHARDS: dict[str, Any] = {"size_limit": 16 * (32 * 2 + 4) + 200}


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    return load(corpus)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving() as store:
        yield store


@pytest.fixture(scope="module")
def data(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    streams = {(None, "train"): ROWS, (None, "val"): random_rows(8, 32, seed=5)}
    return write_dataset(tmp_path_factory.mktemp("data"), tokenizer, streams, **SHARDS)


@pytest.fixture(scope="module")
def packed(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    return write_dataset(folder, tokenizer, {(None, "train"): ROWS}, compression="zstd", **SHARDS)


@pytest.fixture
def mine(data: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(data, tmp_path / "mine")


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_run_streams_from_s3_as_from_a_folder(
    store: Store, corpus: Path, data: Path, tmp_path: Path
) -> None:
    url = store.upload(data, "run")
    changes: dict[str, Any] = {"algorithms": {"patch_level": {"k": 4, "ratio": 0.5}}, "eval_interval": "2ba"}
    changes |= {"max_duration": "2ba"}
    here = train(pile_config(corpus, data, **changes))
    cfg = pile_config(corpus, data, **changes)
    for name in ("train_loader", "eval_loader"):
        cfg[name]["dataset"] |= {"remote": url, "local": str(tmp_path / "cache")}
    there = train(cfg)
    for name in ("loss/train/total", "metrics/eval/LanguageCrossEntropy"):
        assert metrics(there, name) == metrics(here, name) != []
    shards = sorted(path.name for path in (data / "train").glob("*.mds"))
    assert len(shards) == 4
    assert {store.downloads[f"run/train/{shard}"] for shard in shards} <= {0, 1}
    assert sum(store.downloads[f"run/train/{shard}"] for shard in shards) > 0


@pytest.mark.parametrize("kind", ["data", "packed"])
def test_a_shard_that_arrives_damaged_is_fetched_again(
    kind: str,
    store: Store,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = store.upload(request.getfixturevalue(kind), f"once-{kind}")
    file = "shard.00002.mds" + (".zstd" if kind == "packed" else "")
    store.damages[f"once-{kind}/train/{file}"] = 2
    spec = build(tokenizer, remote=url, local=str(tmp_path / "cache"), max_seq_len=32)
    with caplog.at_level(logging.WARNING):
        assert rows_of(spec) == ROWS.tolist()
    assert store.downloads[f"once-{kind}/train/{file}"] == 3
    assert caplog.text.count(f"{file} has sha1 ") == 2


def test_a_shard_that_stays_damaged_is_named_and_not_trained_on(
    store: Store, corpus: Path, data: Path, tmp_path: Path
) -> None:
    url = store.upload(data, "always")
    store.damages["always/train/shard.00001.mds"] = 1000
    cfg = pile_config(corpus, data, algorithms={"patch_level": {"k": 4, "ratio": 0.5}}, max_duration="1ep")
    cfg["train_loader"]["dataset"] |= {"remote": url, "local": str(tmp_path / "cache"), "shuffle": False}
    with pytest.raises(
        ShardError, match=r"train_loader\.dataset: shard\.00001\.mds of s3://rows/always/train "
    ):
        train(cfg)
    assert store.downloads["always/train/shard.00001.mds"] == 3
    assert not (tmp_path / "cache" / "train" / "shard.00001.mds").exists()


def test_rows_before_the_damaged_shard_come(
    tokenizer: PreTrainedTokenizerFast, mine: Path, tmp_path: Path
) -> None:
    damage(mine / "train" / "shard.00001.mds")
    spec = build(tokenizer, remote=str(mine), local=str(tmp_path / "cache"), max_seq_len=32)
    found: list[list[int]] = []
    with pytest.raises(ShardError, match="None of its rows is used"):
        found.extend(row for batch in spec.dataloader for row in batch["input_ids"].tolist())
    assert found == ROWS[:16].tolist()


def test_two_workers_name_it_too(tokenizer: PreTrainedTokenizerFast, mine: Path, tmp_path: Path) -> None:
    damage(mine / "train" / "shard.00001.mds")
    place = {"remote": str(mine), "local": str(tmp_path / "cache")}
    spec = build(tokenizer, 4, workers=2, max_seq_len=32, **place)
    found: list[list[int]] = []
    with pytest.raises(ShardError, match=r"shard\.00001\.mds of .* has sha1 "):
        found.extend(row for batch in spec.dataloader for row in batch["input_ids"].tolist())
    assert all(row in ROWS.tolist() for row in found)


def test_a_shard_that_is_missing_is_named(
    tokenizer: PreTrainedTokenizerFast, mine: Path, tmp_path: Path
) -> None:
    (mine / "train" / "shard.00003.mds").unlink()
    options = {"max_seq_len": 32, "download_retry": 1}
    spec = build(tokenizer, remote=str(mine), local=str(tmp_path / "cache"), **options)
    with pytest.raises(ShardError, match=r"shard\.00003\.mds of .*FileNotFoundError"):
        rows_of(spec)


def test_a_cache_with_a_file_cut_short_is_mended(
    tokenizer: PreTrainedTokenizerFast, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(data / "train", tmp_path / "cache" / "train")
    file = tmp_path / "cache" / "train" / "shard.00000.mds"
    file.write_bytes(file.read_bytes()[:-5])
    spec = build(tokenizer, remote=str(data), local=str(tmp_path / "cache"), max_seq_len=32)
    assert rows_of(spec) == ROWS.tolist()
    assert "it will be fetched again" in caplog.text


@pytest.mark.parametrize("remote", [None, "{}", "{}/."])
def test_the_data_set_itself_is_never_removed(
    remote: str | None, tokenizer: PreTrainedTokenizerFast, mine: Path
) -> None:
    file = mine / "train" / "shard.00000.mds"
    file.write_bytes(file.read_bytes()[:-5])
    place = {"remote": remote and remote.format(mine), "local": str(mine)}
    with pytest.raises(ShardError, match=r"shard\.00000\.mds is damaged: 1\d+ bytes instead of 1"):
        build(tokenizer, max_seq_len=32, **place)
    assert file.exists()


def test_a_packed_shard_of_the_data_set_itself_is_never_removed(
    tokenizer: PreTrainedTokenizerFast, packed: Path, tmp_path: Path
) -> None:
    mine = shutil.copytree(packed, tmp_path / "mine")
    damage(mine / "train" / "shard.00001.mds.zstd")
    spec = build(tokenizer, local=str(mine), max_seq_len=32)
    with pytest.raises(ShardError, match=r"shard\.00001\.mds of .*shard\.00001\.mds\.zstd has sha1"):
        rows_of(spec)
    assert len(list((mine / "train").glob("*.zstd"))) == 4


def test_a_cache_of_another_data_set_is_refused(
    tokenizer: PreTrainedTokenizerFast, data: Path, tmp_path: Path
) -> None:
    write_stream(tmp_path / "cache" / "train", random_rows(10, 32))
    with pytest.raises(ValueError, match=r"lists 10 rows, but .* has 64"):
        build(tokenizer, remote=str(data), local=str(tmp_path / "cache"), max_seq_len=32)


def test_data_without_checksums_is_compared_by_size(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "data", tokenizer, {(None, "train"): ROWS}, hashes=[])
    file = tmp_path / "data" / "train" / "shard.00000.mds"
    whole = file.read_bytes()
    spec = build(tokenizer, remote=str(tmp_path / "data"), local=str(tmp_path / "cache"), max_seq_len=32)
    file.write_bytes(whole[:-5])
    with pytest.raises(ShardError, match=r"bytes instead of "):
        rows_of(spec)


def test_mixtures_stream_too(store: Store, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    streams = {("ArXiv", "train"): random_rows(10, 8), ("Github", "train"): random_rows(30, 8, 9)}
    url = store.upload(write_dataset(tmp_path / "data", tokenizer, streams), "mixed")
    place = {"remote": url, "local": str(tmp_path / "cache")}
    spec = build(tokenizer, max_seq_len=8, components={"ArXiv": 1, "Github": 1}, **place)
    found = rows_of(spec)
    assert len(found) == 40
    assert sum(row in streams["ArXiv", "train"].tolist() for row in found) == 20
