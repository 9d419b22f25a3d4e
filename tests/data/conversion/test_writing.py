"""Rows come out in MDS shards, in folders of units, that stock readers read like any others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from llmfoundry.data.text_data import build_text_dataloader
from streaming import StreamingDataset
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from patch_algorithm.data.conversion.writing import RowFormat, write_shards
from patch_algorithm.data.loader.dataloader import build_pile_dataloader
from tests.data.support import ROW, run, stream_tokens


def form(row_tokens: int = 8, dtype: str = "uint16", compression: str | None = None) -> RowFormat:
    return RowFormat(row_tokens, dtype, compression, shard_bytes=1000)


@pytest.mark.parametrize("lengths", [[500], [0, 3, 0, 361, 1, 0, 40, 0], [5] * 130, [7]])
@pytest.mark.parametrize("row", [1, 7, 8])
def test_rows_go_on_from_piece_to_piece(lengths: list[int], row: int, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 2**16, sum(lengths)).astype(np.uint16)
    pieces = np.split(tokens, np.cumsum(lengths)[:-1])
    shards = write_shards(iter(pieces), len(tokens), tmp_path, "unit", form(row))
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    rows = sum(shard["samples"] for shard in shards)
    assert rows == len(tokens) // row
    assert all(shard["raw_data"]["bytes"] <= 1000 for shard in shards)
    if rows:
        assert (stream_tokens(tmp_path, ".") == tokens[: rows * row]).all()
    else:
        assert not (tmp_path / "unit").exists()


@pytest.mark.parametrize(
    ("rows", "shards", "written"), [(5, 0, 0), (6, 1, 6), (40, 1, 40), (44, 1, 40), (46, 2, 46)]
)
def test_a_small_last_shard_is_left_to_the_tail(rows: int, shards: int, written: int, tmp_path: Path) -> None:
    tokens = np.arange(rows * 8 + 3, dtype=np.uint16)
    made = write_shards([tokens], len(tokens), tmp_path, "unit", form(), smallest=16 * 6)
    assert len(made) == shards
    assert sum(shard["samples"] for shard in made) == written


def test_compressed_shards_are_recorded_with_both_their_hashes(tmp_path: Path) -> None:
    tokens = np.arange(2000, dtype=np.uint16)
    for shard in write_shards([tokens], len(tokens), tmp_path, "unit", form(compression="zstd")):
        data = (tmp_path / shard["zip_data"]["basename"]).read_bytes()
        assert shard["zip_data"]["hashes"]["sha1"] == hashlib.sha1(data).hexdigest()
        raw = zstandard.ZstdDecompressor().decompress(data)
        assert shard["raw_data"]["hashes"]["sha1"] == hashlib.sha1(raw).hexdigest()


def test_a_row_that_fits_no_shard_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a row of 500 tokens \(uint16\) does not fit into a shard of 1,000"
    ):
        form(500)


@pytest.fixture(scope="module", params=[None, "zstd"])
def merged(
    request: pytest.FixtureRequest,
    pile: list[Path],
    tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, np.ndarray]:
    """A dataset of several units and tails, and its rows ``[rows, ROW]`` in the order of the index."""
    out = tmp_path_factory.mktemp("merged") / "out"
    run(pile, tokenizer, out, compression=request.param)
    assert len({path.parent for path in (out / "train").rglob("shard*")}) > 10
    return out, stream_tokens(out, "train").reshape(-1, ROW)


@pytest.mark.parametrize("remote", [False, True])
def test_streaming_reads_the_rows_in_order(
    remote: bool, merged: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    out, rows = merged
    places = {"remote": str(out), "local": str(tmp_path / "cache")} if remote else {"local": str(out)}
    dataset = StreamingDataset(**places, split="train", shuffle=False, batch_size=1)  # pyright: ignore
    assert (np.stack([dataset[index]["tokens"] for index in range(len(dataset))]) == rows).all()


@pytest.mark.parametrize("build", [build_text_dataloader, build_pile_dataloader])
@pytest.mark.parametrize("remote", [False, True])
def test_the_loaders_hand_the_rows_out(
    build: Any, remote: bool, merged: tuple[Path, np.ndarray], tokenizer: Path, tmp_path: Path
) -> None:
    out, rows = merged
    places = {"remote": str(out), "local": str(tmp_path / "cache")} if remote else {"local": str(out)}
    loader = build(
        PreTrainedTokenizerFast.from_pretrained(str(tokenizer)),
        device_batch_size=4,
        dataset={**places, "split": "train", "shuffle": False, "max_seq_len": ROW},
        drop_last=False,
        num_workers=0,
        prefetch_factor=None,
        persistent_workers=False,
        pin_memory=False,
    ).dataloader
    assert (np.concatenate([batch["input_ids"].numpy() for batch in loader]) == rows).all()
