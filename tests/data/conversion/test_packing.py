"""Streams of tokens come out as rows in MDS shards that stock readers read."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zstandard
from llmfoundry.data.text_data import build_text_dataloader
from streaming import MDSWriter, StreamingDataset
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from patch_algorithm.data.conversion.packing import (
    LARGEST_SHARD,
    Piece,
    StreamPlan,
    finish_stream,
    pack_shard,
)
from tests.support import write_corpus


def write_pieces(folder: Path, lengths: list[int], dtype: str = "uint16") -> tuple[list[Piece], np.ndarray]:
    """Pieces of the lengths, with tokens of others before and after each, and the stream that they make."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(lengths) + 1)
    pieces, streams = [], [np.empty(0, dtype)]
    for number, length in enumerate(lengths):
        before, after = rng.integers(0, 9, size=2)
        tokens = rng.integers(0, 96, size=before + length + after).astype(dtype)
        tokens.astype(np.dtype(dtype).newbyteorder("<")).tofile(folder / f"{number}.tokens")
        pieces.append(Piece(str(folder / f"{number}.tokens"), int(before), length))
        streams.append(tokens[before : before + length])
    return pieces, np.concatenate(streams)


def plan_of(pieces: list[Piece], **changes: object) -> StreamPlan:
    options = {"path": "train", "row_tokens": 8, "dtype": "uint16", "compression": None, "shard_bytes": 400}
    return StreamPlan(**options | {"pieces": tuple(pieces)} | changes)  # pyright: ignore[reportArgumentType]


def pack(plan: StreamPlan, out: Path) -> None:
    for shard in range(plan.shards):
        pack_shard(plan, shard, out)
    finish_stream(plan, out)


def content(folder: Path) -> dict[str, str]:
    """The hash of every file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_read(folder: Path) -> np.ndarray:
    dataset = StreamingDataset(local=str(folder), split="train", shuffle=False, batch_size=1)
    return np.stack([dataset[i]["tokens"] for i in range(len(dataset))])


@pytest.mark.parametrize(("row", "dtype"), [(1, "uint16"), (7, "uint32"), (8, "uint16")])
@pytest.mark.parametrize("lengths", [[100], [0, 3, 0, 61, 1, 0, 40, 0], [5] * 30, [13 * 8]])
def test_files_are_those_of_streamings_own_writer(
    tmp_path: Path, lengths: list[int], row: int, dtype: str
) -> None:
    pieces, stream = write_pieces(tmp_path / "units", lengths, dtype)
    plan = plan_of(pieces, row_tokens=row, dtype=dtype)
    pack(plan, tmp_path / "ours")
    columns = {"tokens": f"ndarray:{dtype}:{row}"}
    theirs = tmp_path / "theirs" / "train"
    with MDSWriter(out=str(theirs), columns=columns, hashes=["sha1"], size_limit=400) as writer:
        for tokens in stream[: len(stream) // row * row].reshape(-1, row):
            writer.write({"tokens": tokens})
    assert content(tmp_path / "ours") == content(tmp_path / "theirs")
    assert plan.shards > 1
    assert (plan.rows, plan.tokens_left_out) == divmod(len(stream), row)
    assert plan.tokens + plan.tokens_left_out == len(stream)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_streaming_reads_the_rows_in_order(tmp_path: Path, compression: str | None) -> None:
    pieces, stream = write_pieces(tmp_path / "units", [50, 0, 70, 3])
    pack(plan_of(pieces, compression=compression), tmp_path / "out")
    assert (rows_read(tmp_path / "out") == stream[:120].reshape(15, 8)).all()


def test_compressed_shards_are_recorded_with_both_their_hashes(tmp_path: Path) -> None:
    pieces, _ = write_pieces(tmp_path / "units", [200])
    pack(plan_of(pieces, compression="zstd"), tmp_path / "zstd")
    shards = json.loads((tmp_path / "zstd" / "train" / "index.json").read_text())["shards"]
    assert len(shards) > 1
    for shard in shards:
        file = tmp_path / "zstd" / "train" / shard["zip_data"]["basename"]
        assert shard["zip_data"]["hashes"]["sha1"] == hashlib.sha1(file.read_bytes()).hexdigest()
        assert shard["zip_data"]["bytes"] == file.stat().st_size
        raw = zstandard.ZstdDecompressor().decompress(file.read_bytes())
        assert shard["raw_data"]["hashes"]["sha1"] == hashlib.sha1(raw).hexdigest()
        assert shard["raw_data"]["bytes"] == len(raw)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_llm_foundry_trains_on_the_rows(tmp_path: Path, compression: str | None) -> None:
    pieces, stream = write_pieces(tmp_path / "units", [300])
    pack(plan_of(pieces, compression=compression), tmp_path / "out")
    corpus = write_corpus(tmp_path / "corpus")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(corpus / "tokenizer"))
    loader = build_text_dataloader(
        tokenizer,
        device_batch_size=4,
        dataset={"local": str(tmp_path / "out"), "split": "train", "shuffle": False, "max_seq_len": 8},
        drop_last=False,
        num_workers=0,
        prefetch_factor=None,  # pyright: ignore[reportArgumentType]
        persistent_workers=False,
        pin_memory=False,
    ).dataloader
    rows = np.concatenate([batch["input_ids"].numpy() for batch in loader])
    assert (rows == stream[:296].reshape(37, 8)).all()


def test_bytes_depend_on_neither_order_nor_interruption(tmp_path: Path) -> None:
    pieces, _ = write_pieces(tmp_path / "units", [33] * 20)
    plan = plan_of(pieces, compression="zstd")
    pack(plan, tmp_path / "first")
    again = tmp_path / "again"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(pack_shard, [(plan, shard, again) for shard in reversed(range(plan.shards))])
    # Killed between a shard and its entry, within a shard, and within an entry.
    (again / "train" / "shard.00001.entry.json").unlink()
    (again / "train" / "shard.00001.mds.zstd").write_bytes(b"half")
    (again / "train" / "shard.00002.mds.zstd").unlink()
    (again / "train" / ".shard.00002.mds.zstd.partial").write_bytes(b"half")
    (again / "train" / ".shard.00003.entry.json.partial").write_text("{")
    (again / "train" / "shard.00003.entry.json").unlink()
    with pytest.raises(FileNotFoundError):
        finish_stream(plan, again)
    pack(plan, again)
    # Killed between the index and the removal of the entries.
    (again / "train" / "shard.00000.entry.json").write_text("{}")
    finish_stream(plan, again)
    assert content(again) == content(tmp_path / "first")


def test_a_finished_shard_is_not_written_again(tmp_path: Path) -> None:
    pieces, _ = write_pieces(tmp_path / "units", [200])
    plan = plan_of(pieces)
    pack_shard(plan, 0, tmp_path)
    shutil.rmtree(tmp_path / "units")
    pack_shard(plan, 0, tmp_path)
    with pytest.raises(FileNotFoundError):
        pack_shard(plan, 1, tmp_path)


@pytest.mark.parametrize("lengths", [[], [0, 0], [3, 0, 4]])
def test_a_stream_without_a_row_has_no_folder(tmp_path: Path, lengths: list[int]) -> None:
    pieces, _ = write_pieces(tmp_path / "units", lengths)
    plan = plan_of(pieces)
    pack(plan, tmp_path / "out")
    assert (plan.rows, plan.shards, plan.tokens, plan.tokens_left_out) == (0, 0, 0, sum(lengths))
    assert not (tmp_path / "out").exists()


def test_shards_stay_below_the_limit_and_hold_few_pieces(tmp_path: Path) -> None:
    pieces, _ = write_pieces(tmp_path / "units", [40] * 50)
    plan = plan_of(pieces)
    pack(plan, tmp_path / "out")
    sizes = [path.stat().st_size for path in (tmp_path / "out" / "train").glob("*.mds")]
    assert len(sizes) == plan.shards
    assert 380 - 20 < max(sizes) <= 400
    assert max(len(plan.shard(number).pieces) for number in range(plan.shards)) <= 5
    with pytest.raises(ValueError, match=f"has {plan.shards} shards; there is no shard {plan.shards}"):
        plan.shard(plan.shards)


def test_a_file_that_is_too_short_is_named(tmp_path: Path) -> None:
    pieces, _ = write_pieces(tmp_path / "units", [200])
    os.truncate(pieces[0].path, 100)
    with pytest.raises(ValueError, match=r"0.tokens ends .* tokens before"):
        pack(plan_of(pieces), tmp_path / "out")
    assert not list((tmp_path / "out" / "train").glob("shard*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_tokens": 0}, "have 0 tokens"),
        ({"dtype": "int64"}, "expected uint16 or uint32"),
        ({"compression": "gz"}, "expected zstd or none"),
        ({"shard_bytes": 0}, "expected 1 to"),
        ({"shard_bytes": LARGEST_SHARD + 1}, "expected 1 to 134,217,728"),
        ({"row_tokens": 200}, r"a row of 200 tokens \(uint16\) does not fit into a shard of 400 bytes"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of([], **changes)
