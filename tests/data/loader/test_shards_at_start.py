"""Shards that are there when a run starts: those of a cache, and those that `verify` looks into."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from patch_algorithm.data.loader.streams import ShardError
from tests.data.loader.written import build, load, random_rows, rows_of, write_dataset, write_stream


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    return load(corpus)


@pytest.fixture
def data(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", tokenizer, {(None, "train"): random_rows(16, 8)})


def flip_a_bit(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[-6] ^= 1
    shard.write_bytes(content)


def test_a_remote_without_a_local_is_cached_and_found_again(
    tokenizer: PreTrainedTokenizerFast,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    caplog.set_level(logging.INFO, "patch_algorithm")
    expected = random_rows(16, 8).tolist()
    for _ in range(2):
        assert rows_of(build(tokenizer, remote=str(data), max_seq_len=8)) == expected
    for _ in range(2):
        streams = {"a": {"remote": str(data)}}
        assert rows_of(build(tokenizer, streams=streams, max_seq_len=8)) == expected
    (cache,) = (tmp_path / "tmp").glob("patch-algorithm-*")
    assert f"is cached in {cache}" in caplog.text


def test_flipped_bits_of_a_local_shard_are_found_if_asked(
    tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    assert len(rows_of(build(tokenizer, local=str(data), max_seq_len=8, verify=True))) == 16
    flip_a_bit(data / "train" / "shard.00000.mds")
    assert len(rows_of(build(tokenizer, local=str(data), max_seq_len=8))) == 16, "sizes alone"
    with pytest.raises(ShardError, match=r"shard\.00000\.mds is damaged: sha1 .* instead of .*Restore it"):
        build(tokenizer, local=str(data), max_seq_len=8, verify=True)
    with pytest.raises(ShardError, match="is damaged"):
        build(tokenizer, streams={"a": {"local": str(data), "verify": True}}, max_seq_len=8)


def test_flipped_bits_of_a_cached_shard_are_fetched_again(
    tokenizer: PreTrainedTokenizerFast, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = {"remote": str(data), "local": str(tmp_path / "cache")}
    expected = rows_of(build(tokenizer, **place, max_seq_len=8))
    flip_a_bit(tmp_path / "cache" / "train" / "shard.00000.mds")
    assert rows_of(build(tokenizer, **place, max_seq_len=8)) != expected
    assert rows_of(build(tokenizer, **place, max_seq_len=8, verify=True)) == expected
    assert "it will be fetched again" in caplog.text


def test_verify_needs_checksums_and_a_yes_or_no(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    write_stream(tmp_path / "train", random_rows(4, 8), hashes=[])
    with (
        pytest.warns(UserWarning, match="cannot be checked"),
        pytest.raises(ValueError, match="no checksums"),
    ):
        build(tokenizer, local=str(tmp_path), max_seq_len=8, verify=True)
    with (
        pytest.warns(UserWarning, match="cannot be checked"),
        pytest.raises(ValueError, match="verify is 'yes'; expected true or false"),
    ):
        build(tokenizer, local=str(tmp_path), max_seq_len=8, verify="yes")
