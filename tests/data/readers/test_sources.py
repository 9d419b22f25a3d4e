"""Every kind of source gives the same rows for the same documents, and can be read from its middle."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from patch_algorithm.data.readers.blocks import Lost, Position, Row
from patch_algorithm.data.readers.find import find_sources
from patch_algorithm.data.readers.lines import LineSource
from patch_algorithm.data.readers.source import Reading, Source
from patch_algorithm.data.readers.tables import TableSource
from patch_algorithm.data.readers.texts import TextSource
from tests.data.support import documents, lines, run, stream_tokens

FOUND = documents(300)
READING = Reading(block_bytes=1 << 12, longest_line=1 << 16)


def frames(data: bytes, **options: Any) -> bytes:
    """Three zstd frames, cut in the middle of lines."""
    third = len(data) // 3
    parts = (data[:third], data[third : 2 * third], data[2 * third :])
    return b"".join(zstandard.ZstdCompressor(**options).compress(part) for part in parts)


def long_window(data: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=29, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush()


def table(path: Path, found: list[dict[str, Any]] = FOUND, **options: Any) -> None:
    metas = [{"pile_set_name": d["meta"].get("pile_set_name"), "other": 1} for d in found]
    columns = pa.table({"text": [d["text"] for d in found], "meta": metas, "number": list(range(len(found)))})
    pq.write_table(columns, path, **options)


def not_utf8(texts: list[bytes]) -> pa.Array:
    """Strings, as far as the table says."""
    return pa.array(texts, pa.binary()).view(pa.string())


def write(folder: Path, kind: str) -> Path:
    data = lines(FOUND)
    folder.mkdir(exist_ok=True)
    path = folder / {
        "zst": "a.jsonl.zst",
        "long": "a.jsonl.zst",
        "gz": "a.jsonl.gz",
        "padded": "a.jsonl.gz",
    }.get(kind, "a.jsonl")
    if kind == "zst":
        path.write_bytes(frames(data, write_checksum=True))
    elif kind == "long":
        path.write_bytes(long_window(data))
    elif kind == "gz":
        path.write_bytes(gzip.compress(data[:5000]) + gzip.compress(data[5000:]))
    elif kind == "padded":
        path.write_bytes(gzip.compress(data[:5000]) + gzip.compress(data[5000:]) + bytes(10_000))
    elif kind == "parquet":
        table(path := folder / "a.parquet", row_group_size=70)
    elif kind == "crlf":
        path.write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n").rstrip())
    else:
        path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def plain(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    run([write(folder, "plain")], tokenizer, folder / "out", **ONE_UNIT)
    return folder / "out"


def streams(out: Path) -> dict[str, list[int]]:
    """The tokens of each stream."""
    paths = [path.parent.relative_to(out).as_posix() for path in sorted(out.rglob("index.json"))]
    return {path: stream_tokens(out, path).tolist() for path in paths}


# One unit: where units end depends on how long the lines of a file are.
ONE_UNIT = {"split_by_component": True, "unit_bytes": 1 << 24}


@pytest.mark.parametrize("kind", ["zst", "long", "gz", "padded", "parquet", "crlf"])
def test_every_kind_of_file_gives_the_same_rows(
    kind: str, plain: Path, tokenizer: Path, tmp_path: Path
) -> None:
    run([write(tmp_path, kind)], tokenizer, tmp_path / "out", **ONE_UNIT)
    assert streams(tmp_path / "out") == streams(plain)


def test_a_hugging_face_dataset_gives_the_same_rows(plain: Path, tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    write(folder, "parquet").rename(folder / "train-00000.parquet")
    table(folder / "validation-00000.parquet", FOUND[:40])
    run([f"hf://{folder}"], tokenizer, tmp_path / "out", **ONE_UNIT)
    assert streams(tmp_path / "out") == streams(plain)
    report = run([f"hf://{folder}"], tokenizer, tmp_path / "val", hub_split="validation")
    assert sum(splits["train"].documents for splits in report.info.components.values()) == 40
    (hub,) = find_sources([f"hf://{folder}"])
    check_reading_goes_on(hub)


def test_unknown_hugging_face_datasets(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the Hugging Face dataset 'monology/pile-uncopyrighted'.*cannot"):
        run(["monology/pile-uncopyrighted"], tokenizer, tmp_path / "out")
    write(tmp_path / "dataset", "parquet")
    with pytest.raises(ValueError, match="split 'nothing'"):
        run([f"hf://{tmp_path / 'dataset'}"], tokenizer, tmp_path / "out", hub_split="nothing")
    assert not (tmp_path / ".out.partial").exists()


def check_reading_goes_on(source: Source, least: int = 6) -> None:
    blocks = list(source.blocks(Position(), READING))
    assert len(blocks) >= least
    for index in {0, min(3, len(blocks) - 1), len(blocks) // 2, len(blocks) - 1}:
        rest = list(source.blocks(blocks[index].end, READING))
        assert [(b.data, b.start, b.end) for b in rest] == [
            (b.data, b.start, b.end) for b in blocks[index + 1 :]
        ]
    if source.size() is not None:
        assert sum(block.read_bytes for block in blocks) <= (source.size() or 0)


@pytest.mark.parametrize("kind", ["plain", "zst", "gz", "parquet"])
def test_reading_goes_on_at_any_block(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    check_reading_goes_on(TableSource(path) if kind == "parquet" else LineSource(path))


def test_reading_texts_goes_on_at_any_block() -> None:
    texts = [d["text"] for d in FOUND]
    check_reading_goes_on(TextSource("texts", lambda: texts, {}, sum(len(t.encode()) for t in texts)))


def test_bad_rows_of_tables(tokenizer: Path, tmp_path: Path) -> None:
    good = pa.array([d["text"].encode() for d in FOUND[:60]])
    bad = pa.array([b"caf\xe9", None], pa.binary())
    texts = pa.concat_arrays([good, bad]).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 61: broken UTF-8"):
        run([tmp_path / "a.parquet"], tokenizer, tmp_path / "out")
    report = run([tmp_path / "a.parquet"], tokenizer, tmp_path / "out", on_error="skip")
    assert report.info.skipped == {"broken UTF-8": 1, "without text": 1}


def test_labels_and_dictionaries_of_tables_that_are_not_utf8(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    labels = pa.StructArray.from_arrays([not_utf8([b"ArXiv", b"\xff", b""])], ["pile_set_name"])
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), not_utf8([b"good text " * 9, b"caf\xe9"]))
    pq.write_table(pa.table({"text": texts, "meta": labels}), path)
    (block,) = TableSource(path).blocks(Position(), READING)
    assert [row.component for row in block.data if isinstance(row, Row)] == ["ArXiv", "\ufffd", None]
    with pytest.raises(ValueError, match=r"a\.parquet, row 2: broken UTF-8"):
        run([path], tokenizer, tmp_path / "out")
    report = run([path], tokenizer, tmp_path / "out", on_error="skip")
    assert report.info.skipped == {"broken UTF-8": 1}


def test_only_the_rest_of_a_damaged_row_group_is_lost(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    found = documents(5000)
    options: dict[str, Any] = {"use_dictionary": False, "compression": "zstd", "data_page_size": 1 << 12}
    table(path, found, row_group_size=500, write_batch_size=20, **options)
    column = pq.ParquetFile(path).metadata.row_group(3).column(0)
    data = bytearray(path.read_bytes())
    place = column.data_page_offset + column.total_compressed_size // 2
    data[place : place + 2000] = b"x" * 2000
    path.write_bytes(data)
    rows = [row for block in TableSource(path).blocks(Position(), READING) for row in block.data]
    lost = [number for number, row in enumerate(rows, 1) if isinstance(row, Row) and isinstance(row[0], Lost)]
    assert 1600 < lost[0] < 1900
    assert lost == list(range(lost[0], 2001))
    check_reading_goes_on(TableSource(path))
    with pytest.raises(
        ValueError, match=rf"a\.parquet, row {lost[0]}: damaged row \(its row group cannot be"
    ):
        run([path], tokenizer, tmp_path / "out")
    report = run([path], tokenizer, tmp_path / "out", on_error="skip")
    assert report.info.skipped == {"damaged row": len(lost)}
    assert sum(splits["train"].documents for splits in report.info.components.values()) == 5000 - len(lost)


def test_a_table_with_another_checksum_is_damaged(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table(path, use_dictionary=False, compression="none", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    place = data.index(FOUND[20]["text"].encode())
    data[place : place + 3] = b"???"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet, row \d+: damaged row"):
        run([path], tokenizer, tmp_path / "out")


def test_a_table_that_the_system_cannot_read_is_not_damaged(tmp_path: Path) -> None:
    # Nothing is to be skipped over that may be there the next time.
    with pytest.raises(FileNotFoundError):
        list(TableSource(tmp_path / "gone.parquet").blocks(Position(), READING))


def test_a_bad_line_of_a_hugging_face_dataset_is_told_with_a_way_around(
    tokenizer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dataset"
    write(folder, "plain").write_bytes(lines(FOUND[:9]) + b"{bad\n" + lines(FOUND[9:]))
    with pytest.raises(ValueError, match=r"name the dataset's files themselves"):
        run([f"hf://{folder}"], tokenizer, tmp_path / "out", on_error="skip")
    report = run([folder], tokenizer, tmp_path / "other", on_error="skip")
    assert report.info.skipped == {"not JSON": 1}


def test_the_text_field_is_an_option(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"content": "x" * 50, "text": 3}) + "\n" for _ in range(9)))
    report = run([path], tokenizer, tmp_path / "out", text_field="content")
    assert report.info.components["unlabelled"]["train"].bytes == 450
    table(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: without text \(it has no column 'content', only text"):
        run([tmp_path / "b.parquet"], tokenizer, tmp_path / "other", text_field="content")


def names(found: list[Source]) -> list[str]:
    return [Path(source.name).name for source in found]


def test_folders_and_patterns_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a.jsonl.zst", "sub/c.parquet", "README.md", ".hidden.jsonl", "sub/d.jsonl.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert names(find_sources([str(tmp_path)])) == ["a.jsonl.zst", "b.jsonl", "c.parquet", "d.jsonl.gz"]
    assert names(find_sources([f"{tmp_path}/*.jsonl", f"{tmp_path}/**/*.gz"])) == ["b.jsonl", "d.jsonl.gz"]
    monkeypatch.chdir(tmp_path)
    assert [source.name for source in find_sources(["b.jsonl", "sub"])] == [
        "b.jsonl",
        "sub/c.parquet",
        "sub/d.jsonl.gz",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.jsonl", "there is no such file or folder, and nothing matches"),
        ("data/none.jsonl.zst", "there is no such file or folder"),
        ("*.none", "nothing matches it as a pattern"),
        ("text.txt", r"expected a file that ends in \.jsonl, \.ndjson or \.json, also with \.gz"),
        ("empty", "the folder holds no file that ends in"),
    ],
)
def test_sources_that_are_none(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        find_sources([name])


def test_a_source_is_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "plain")
    monkeypatch.chdir(tmp_path)
    for others in ([str(tmp_path)], ["a.jsonl"], ["./a.jsonl"], ["*.jsonl"]):
        with pytest.raises(ValueError, match=r"a\.jsonl is named twice"):
            find_sources([*others, str(tmp_path / "a.jsonl")])
