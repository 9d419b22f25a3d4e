"""What a dataset says of itself, on this machine and in an object store, and how damage shows."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from tokenizers import Tokenizer

from patch_algorithm.data.conversion.upload import Uploader
from patch_algorithm.data.conversion.writing import RowFormat, write_shards
from patch_algorithm.data.dataset.description import (
    ComponentCounts,
    DatasetInfo,
    StreamInfo,
    TokenizerInfo,
)
from patch_algorithm.data.dataset.inspection import inspect_dataset, read_row, row_text
from patch_algorithm.data.dataset.integrity import ShardFault, check_shards
from patch_algorithm.data.dataset.remote import download, is_url
from patch_algorithm.data.tokens.encoding import Encoder, load_tokenizer
from tests.data.tokens.test_tokenizers import save
from tests.data.tokens.toys import SAMPLE

ROW = 16


def write_dataset(folder: Path, compression: str | None = None, by_component: bool = False) -> np.ndarray:
    """Writes a small dataset and returns the rows of its train split."""
    spec = load_tokenizer(str(save(folder / "tokenizer")))
    tokens = np.concatenate(Encoder(spec.encoding()).encode(SAMPLE))
    component = "Wikipedia (en)" if by_component else None
    streams = []
    for split, length, ids in (("train", ROW, tokens), ("val", 8, tokens[3:8])):
        path = f"wikipedia-en/{split}" if by_component else split
        form = RowFormat(length, "uint16", compression, shard_bytes=600)
        shards = write_shards([ids], len(ids), folder / path, "unit", form)
        if shards:
            (folder / path / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
        rows = len(ids) // length
        streams.append(
            StreamInfo(path, component, split, length, rows, len(shards), rows * length, len(ids) % length)
        )
    count = ComponentCounts(len(SAMPLE), sum(len(text.encode()) for text in SAMPLE), len(tokens))
    info = DatasetInfo(
        tokenizer=TokenizerInfo(spec.fingerprint, spec.name, spec.vocab_size, 0, None, "text", True, False),
        dtype="uint16",
        row_tokens={"train": ROW, "val": 8},
        split_by_component=by_component,
        compression=compression,
        streams=tuple(streams),
        components={"Wikipedia (en)": {"train": count, "val": ComponentCounts(1, 9, 5)}},
        skipped={"not JSON": 3},
        sources=("a.jsonl",),
    )
    info.write(folder)
    assert DatasetInfo.read(folder) == info
    return tokens[: len(tokens) // ROW * ROW].reshape(-1, ROW)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bucket of an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="pile")
    yield "s3://pile"
    server.stop()


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_rows_come_back(tmp_path: Path, compression: str | None) -> None:
    rows = write_dataset(tmp_path, compression)
    info = DatasetInfo.read(tmp_path)
    assert info.stream("train").shards > 2
    for number, row in enumerate(rows):
        assert (read_row(tmp_path, number) == row).all()
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    assert row_text(tmp_path, 1) == tokenizer.decode(rows[1].tolist(), skip_special_tokens=False)
    text = "".join(row_text(tmp_path, number) for number in range(len(rows)))
    assert "The quick brown fox" in text
    assert "<|endoftext|>" in text


def test_a_table_of_what_there_is(tmp_path: Path) -> None:
    rows = write_dataset(tmp_path, by_component=True)
    info, text = DatasetInfo.read(tmp_path), str(inspect_dataset(tmp_path))
    for expected in (
        info.tokenizer.fingerprint,
        f"{info.tokenizer.vocab_size:,} entries",
        "uint16, not compressed",
        "wikipedia-en/train",
        f"{rows.size:,}",
        "Wikipedia (en)  train",
        "3  not JSON",
        "shards are as their indexes record them",
    ):
        assert expected in text
    header, train, val = (
        next(line for line in text.splitlines() if line.strip().startswith(start))
        for start in ("stream ", "wikipedia-en/train", "wikipedia-en/val")
    )
    assert train.split()[1:] == [
        f"{n:,}" for n in (len(rows), ROW, rows.size, info.streams[0].tokens_left_out, info.streams[0].shards)
    ]
    assert val.split()[1:] == ["0", "8", "0", "5", "0"]
    assert header.index("rows") + len("rows") == train.index(f" {len(rows)} ") + len(f" {len(rows)}")


def test_every_damaged_file_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    assert inspect_dataset(tmp_path).sound
    first, second, third = (tmp_path / "train" / "unit" / f"shard.0000{number}.mds" for number in range(3))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1])
    size = second.stat().st_size
    third.unlink()
    found = inspect_dataset(tmp_path)
    assert not found.sound
    assert found.faults == (
        ShardFault("train/unit/shard.00000.mds", "corrupted"),
        ShardFault("train/unit/shard.00001.mds", f"has {size} bytes, not {size + 1}"),
        ShardFault("train/unit/shard.00002.mds", "missing"),
    )
    assert "train/unit/shard.00002.mds: missing" in str(found)
    with pytest.raises(ValueError, match=r"train/unit/shard.00000.mds in .* is not as recorded: corrupted"):
        read_row(tmp_path, 0)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    index = tmp_path / "train" / "index.json"
    content = json.loads(index.read_text())
    rows = sum(shard["samples"] for shard in content["shards"])
    last = content["shards"].pop()["samples"]
    index.write_text(json.dumps(content))
    assert check_shards(tmp_path) == [ShardFault("train/index.json", f"has {rows - last} rows, not {rows}")]
    with pytest.raises(ValueError, match="has fewer rows than"):
        read_row(tmp_path, rows - 1)
    for lost in ("basename", "hashes"):
        damaged = json.loads(index.read_text())
        damaged["shards"][0]["raw_data"][lost] = None
        index.write_text(json.dumps(damaged))
        assert check_shards(tmp_path) == [ShardFault("train/index.json", "corrupted")]
        index.write_text(json.dumps(content))
    for broken in ("{", "[]", "{}", '{"shards": [{"samples": 1}]}'):
        index.write_text(broken)
        assert check_shards(tmp_path) == [ShardFault("train/index.json", "corrupted")]
    index.unlink()
    assert check_shards(tmp_path) == [ShardFault("train/index.json", "missing")]
    with pytest.raises(ValueError, match=r"the index of train in .* is missing"):
        read_row(tmp_path, 0)


def test_a_tokenizer_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    file = tmp_path / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text()[:-100])
    assert inspect_dataset(tmp_path).faults == (ShardFault("tokenizer/tokenizer.json", "corrupted"),)
    with pytest.raises(ValueError, match=r"tokenizer/tokenizer\.json in .* cannot be read"):
        row_text(tmp_path, 0)
    file.unlink()
    assert inspect_dataset(tmp_path).faults == (ShardFault("tokenizer/tokenizer.json", "missing"),)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dtype",), "foo"),
        (("row_tokens",), None),
        (("row_tokens",), 8),
        (("streams", 0, "rows"), "12"),
        (("tokenizer", "eos_id"), "0"),
        (("streams", 0, "component"), 3),
    ],
)
def test_a_description_with_other_values_is_refused(
    path: tuple[str | int, ...], value: object, tmp_path: Path
) -> None:
    write_dataset(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    inner = content
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{tmp_path}: dataset.json is not that of a converted dataset"):
        inspect_dataset(tmp_path)


def test_a_description_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=f"dataset.json in {tmp_path} is not JSON"):
        inspect_dataset(tmp_path)


@pytest.mark.parametrize("row", [-1, 10_000])
def test_a_row_that_is_not_there_is_refused_with_the_range(tmp_path: Path, row: int) -> None:
    rows = write_dataset(tmp_path)
    with pytest.raises(ValueError, match=f"no row {row} in train; it has the rows 0 to {len(rows) - 1}"):
        row_text(tmp_path, row)


def test_streams_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, by_component=True)
    with pytest.raises(ValueError, match=r"no stream 'train'; it has Wikipedia \(en\) train, .*--component"):
        row_text(tmp_path, 0)
    with pytest.raises(ValueError, match="wikipedia-en/val has no rows"):
        row_text(tmp_path, 0, "val", "Wikipedia (en)")
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"lacks tokenizer/tokenizer\.json"):
        row_text(tmp_path, 0, "train", "Wikipedia (en)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1}', "not that of"),
    ],
)
def test_other_files_than_ours_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"holds no dataset\.json"):
        inspect_dataset(tmp_path / "missing")
    assert DatasetInfo.find(tmp_path) is None
    (tmp_path / "dataset.json").write_text(text)
    assert DatasetInfo.find(tmp_path / "dataset.json") is None  # a file, not a folder
    with pytest.raises(ValueError, match=message):
        DatasetInfo.find(tmp_path)


def test_a_data_set_in_an_object_store(tmp_path: Path, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = write_dataset(tmp_path / "set", "zstd")
    assert DatasetInfo.find(f"{bucket}/set") is None
    with caplog.at_level(logging.WARNING):
        uploader = Uploader(tmp_path / "set", f"{bucket}/set")
        for file in sorted((tmp_path / "set").rglob("*")):
            if file.is_file():
                uploader.upload(str(file.relative_to(tmp_path / "set")))
    assert not [record for record in caplog.records if record.name.startswith("streaming")]
    assert (tmp_path / "set" / "dataset.json").exists()
    assert inspect_dataset(f"{bucket}/set/").sound
    assert (read_row(f"{bucket}/set", len(rows) - 1) == rows[-1]).all()
    assert row_text(f"{bucket}/set", 1) == row_text(tmp_path / "set", 1)
    boto3.client("s3").delete_object(Bucket="pile", Key="set/train/unit/shard.00001.mds.zstd")
    assert check_shards(f"{bucket}/set") == [ShardFault("train/unit/shard.00001.mds.zstd", "missing")]


def test_places_that_cannot_be_used_are_named(tmp_path: Path, bucket: str) -> None:
    assert [is_url(place) for place in (bucket, "dbfs:/Volumes/a", "data/pile", tmp_path)] == [1, 1, 0, 0]
    with pytest.raises(
        ValueError, match=r"cannot write to 'ftp://host/set'; expected a local folder or one of s3://"
    ):
        Uploader(tmp_path, "ftp://host/set")
    with pytest.raises(ValueError, match="cannot write to 's3://missing/set'"):
        Uploader(tmp_path, "s3://missing/set")
    with pytest.raises(FileNotFoundError, match="there is no s3://pile/missing"):
        download(f"{bucket}/missing", tmp_path / "missing")
    with pytest.raises(ValueError, match=r"nowhere://missing/a/dataset\.json cannot be read"):
        DatasetInfo.find("nowhere://missing/a")
    assert list(tmp_path.iterdir()) == []
