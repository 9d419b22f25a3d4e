"""Bad input stops a conversion with its place and reason, or is skipped and counted; good input is kept."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from patch_algorithm.data.conversion.conversion import ConversionError
from patch_algorithm.data.conversion.estimation import estimate
from patch_algorithm.data.tokens import engine as engine_module
from patch_algorithm.data.tokens.encoding import Encoder, load_tokenizer
from tests.data.support import (
    documents,
    expected_ids,
    expected_tokens,
    files,
    in_child,
    lines,
    options,
    run,
    stream_tokens,
)

BAD_LINES = {
    b'{"text": "unfinished': "not JSON",
    b"[" * 100_000: "line too long",
    b"[" * 20_000: "not JSON",
    b"9" * 5_000: "not JSON",
    b'["text"]': "not an object",
    b'"text"': "not an object",
    b'{"meta": {}}': "without text",
    b'{"text": null}': "without text",
    b'{"text": ["a"]}': "text not a string",
    b'{"text": 3}': "text not a string",
    b'{"text": "caf\xe9"}': "broken UTF-8",
    rb'{"text": "\ud83d alone"}': "lone surrogate",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items(), ids=lambda value: str(value)[:24])
def test_a_bad_line(line: bytes, reason: str, source: Path, tokenizer: Path, tmp_path: Path) -> None:
    good = documents(60)
    source.write_bytes(lines(good[:30]) + b"\n  \n" + line + b"\n" + lines(good[30:]))
    with pytest.raises(ConversionError) as caught:
        run([source], tokenizer, tmp_path / "out")
    assert f"{source}, line 33: {reason}" in str(caught.value)
    assert "--on-error skip" in str(caught.value)
    report = run([source], tokenizer, tmp_path / "out", on_error="skip")
    assert report.info.skipped == {reason: 1}
    assert [(name, bad.number, bad.reason) for name, bad in report.examples] == [(str(source), 33, reason)]
    wanted = expected_tokens([source.read_bytes()], tokenizer, tmp_path / "out", "train")
    assert stream_tokens(tmp_path / "out", "train").tolist() == wanted
    assert sum(splits["train"].documents for splits in report.info.components.values()) == 60


def test_the_first_bad_line_is_named_whatever_the_workers(
    source: Path, tokenizer: Path, tmp_path: Path
) -> None:
    found = [json.dumps(document).encode() for document in documents(400)]
    for index in (350, 390, 130, 210):
        found[index] = b"{"
    source.write_bytes(b"\n".join(found))
    for workers in (0, 3):
        with pytest.raises(ConversionError, match=r"a\.jsonl, line 131: not JSON"):
            run([source], tokenizer, tmp_path / f"out{workers}", workers=workers)


def test_skipped_documents_are_counted_logged_and_told(
    source: Path, tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = [line for line in BAD_LINES if line.count(b"[") < 50_000] * 5
    good = lines(documents(200)).splitlines()
    mixed = [*found, *good]
    random.Random(3).shuffle(mixed)
    source.write_bytes(b"\n".join(mixed))
    report = run([source], tokenizer, tmp_path / "out", on_error="skip")
    wanted: dict[str, int] = {}
    for line in found:
        wanted[BAD_LINES[line]] = wanted.get(BAD_LINES[line], 0) + 1
    assert report.info.skipped == wanted
    first = sorted(index + 1 for index, line in enumerate(mixed) if line in found)[:10]
    assert [bad.number for _, bad in report.examples] == first
    assert caplog.text.count("skipped ") == 11
    assert f"{source}, line {first[0]}" in caplog.text
    assert "5 without text" in str(report) or "10 without text" in str(report)


def test_what_was_skipped_stops_a_conversion_that_shall_stop(
    source: Path, tokenizer: Path, tmp_path: Path
) -> None:
    source.write_bytes(b"{\n" + lines(documents(100)))
    broken = tmp_path / "b.jsonl.gz"
    broken.write_bytes(gzip.compress(lines(documents(100)))[:-20])
    out = tmp_path / "out"
    both = [source, broken]
    work = out.with_name(".out.partial")
    conversion = options(both, tokenizer, out, on_error="skip")
    # Killed when all shards are there.
    in_child(conversion, kill_at="dataset.json")
    assert (work / "data" / "train" / "index.json").is_file()
    with pytest.raises(ConversionError, match=r"a\.jsonl, line 1: not JSON"):
        run(both, tokenizer, out)
    report = run(both, tokenizer, out, on_error="skip")
    assert report.info.skipped == {"not JSON": 1, "truncated file": 1}
    run(both, tokenizer, tmp_path / "fresh", on_error="skip")
    assert files(out) == files(tmp_path / "fresh")


def truncated(kind: str, tmp_path: Path) -> tuple[Path, int]:
    """A file that breaks off, and how many of its lines are whole."""
    data = lines(documents(200))
    path = tmp_path / f"a.jsonl.{kind}"
    if kind == "zst":
        # Flushed now and then: what is before the break can be read.
        compressor = zstandard.ZstdCompressor().compressobj()
        parts = []
        for begin in range(0, len(data), 5000):
            parts += [compressor.compress(data[begin : begin + 5000])]
            parts += [compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
        packed = b"".join([*parts, compressor.flush()])
        path.write_bytes(packed[: len(packed) // 2])
        read = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    else:
        packed = gzip.compress(data)
        path.write_bytes(packed[: len(packed) // 2])
        read = zlib.decompressobj(wbits=31).decompress(path.read_bytes())
    return path, read.count(b"\n")


@pytest.mark.parametrize("kind", ["zst", "gz"])
def test_a_truncated_file(kind: str, tokenizer: Path, tmp_path: Path) -> None:
    path, whole = truncated(kind, tmp_path)
    with pytest.raises(ConversionError, match=rf"a\.jsonl\.{kind}: truncated file"):
        run([path], tokenizer, tmp_path / "out", workers=0)
    report = run([path], tokenizer, tmp_path / "out", on_error="skip")
    assert report.info.skipped == {"truncated file": 1}
    assert sum(splits["train"].documents for splits in report.info.components.values()) == whole > 20


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.gz", ".parquet"])
def test_a_damaged_file(suffix: str, source: Path, tokenizer: Path, tmp_path: Path) -> None:
    source.write_bytes(lines(documents(50)))
    path = tmp_path / f"b{suffix}"
    path.write_bytes(b"PAR1 this is something else" * 20)
    with pytest.raises(ConversionError, match=rf"b\{suffix}: damaged file"):
        run([source, path], tokenizer, tmp_path / "out")
    report = run([source, path], tokenizer, tmp_path / "out", on_error="skip")
    assert report.info.skipped == {"damaged file": 1}


def empty_files(folder: Path) -> list[Path]:
    made = [folder / name for name in ("a.jsonl", "b.jsonl", "c.json", "d.jsonl.gz", "e.parquet")]
    for path, content in zip(made, (b"", b"\n \n\n", b" [ ] ", gzip.compress(b"")), strict=False):
        path.write_bytes(content)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), made[-1])
    return made


def test_empty_files_are_named_before_work_begins(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    source.write_bytes(lines(documents(50)))
    (tmp_path / "empty").mkdir()
    empty, out = empty_files(tmp_path / "empty"), tmp_path / "out"
    for ask in (run, lambda *asked: estimate(options(*asked))):
        with pytest.raises(ValueError, match=r"5 of 6 files hold no documents: .*a\.jsonl, .*e\.parquet\. "):
            ask([source, *empty], tokenizer, out)
    assert not out.with_name(".out.partial").exists()
    report = run([source, *empty], tokenizer, out, on_error="skip")
    assert report.info.skipped == {"empty file": 5}
    run([source], tokenizer, tmp_path / "alone")
    assert stream_tokens(out, "train").tolist() == stream_tokens(tmp_path / "alone", "train").tolist()


def test_a_large_file_of_white_space_is_empty(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    source.write_bytes(b" \n" * 20_000)
    with pytest.raises(ConversionError, match=r"a\.jsonl: empty file"):
        run([source], tokenizer, tmp_path / "out")


def test_a_tokenizer_without_eos(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    spec = load_tokenizer(str(tokenizer))
    spec.tokenizer.eos_token = None
    spec.tokenizer.save_pretrained(str(tmp_path / "no_eos"))
    source.write_bytes(lines(documents(50)))
    with pytest.raises(ValueError, match="has no EOS token; convert with --no-eos"):
        run([source], tmp_path / "no_eos", tmp_path / "out")
    assert not (tmp_path / ".out.partial").exists()
    report = run([source], tmp_path / "no_eos", tmp_path / "out", eos=False)
    assert not report.info.tokenizer.adds_eos


@pytest.mark.parametrize("limit", [1 << 12, 1 << 13])
def test_a_full_disk(limit: int, source: Path, tokenizer: Path, tmp_path: Path) -> None:
    # No file may grow longer than the limit: tokens of units, or only shards, find no room.
    found = documents(240)
    source.write_bytes(lines(found))
    out = tmp_path / "out"
    conversion = options([source], tokenizer, out)
    code, said = in_child(conversion, file_limit=limit)
    assert code == 0
    assert "ConversionError: no space is left in" in said
    assert "repeat the command to continue" in said
    assert not out.exists()
    run([source], tokenizer, out)
    run([source], tokenizer, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def long_document(size: int) -> dict[str, Any]:
    draw = random.Random(5)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randrange(2, 9))) for _ in range(5000)]
    return {"text": " ".join(draw.choices(words, k=size // 6))}


def test_a_long_document_is_encoded_as_one(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    found = [{"text": "before"}, long_document(500_000), {"text": "after it, words to fill a row" * 9}]
    source.write_bytes(lines(found))
    run([source], tokenizer, tmp_path / "out", longest_line=1 << 24)
    tokens = stream_tokens(tmp_path / "out", "train").tolist()
    wanted = [token for ids in expected_ids(found, tokenizer) for token in ids]
    assert tokens == wanted[: len(tokens)]
    assert len(wanted) - len(tokens) < 32


def test_bad_options(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({"row_tokens": 1}, "--row-tokens is 1; expected a whole number of at least 2"),
        ({"val_fraction": 1.0}, "--val-fraction is 1.0"),
        ({"val_fraction": float("nan")}, "--val-fraction is nan"),
        ({"workers": -1}, "--workers is -1"),
        ({"on_error": "ignore"}, "--on-error is 'ignore'; expected stop or skip"),
        ({"compression": "gz"}, "--compression is 'gz'"),
        ({"engine": "ray"}, "--workers is 0; expected at least 1 on a Ray cluster"),
        ({"longest_line": 5}, "--longest-line is 5"),
    ):
        with pytest.raises(ValueError, match=words):
            options([source], tokenizer, tmp_path / "out", **changes)


def test_a_text_that_cannot_be_cut(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Tokenizer(models.WordLevel({"x": 0, "good": 1, "</s>": 2}, unk_token="x"))
    PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="</s>").save_pretrained(tmp_path / "whole")
    # What takes millions of characters in earnest.
    short = partial(Encoder, piece_characters=64, longest_piece=256)
    monkeypatch.setattr(engine_module, "Encoder", short)
    found = [{"text": text} for text in ("good", "y" * 300, "good", "z" * 400, "good")]
    source.write_bytes(lines(found) + b"{\n")
    asked = {"row_tokens": 2, "special_tokens": "allow"}
    with pytest.raises(ConversionError, match=r"a\.jsonl, line 2: text without a place to cut"):
        run([source], tmp_path / "whole", tmp_path / "out", **asked)
    report = run([source], tmp_path / "whole", tmp_path / "out", on_error="skip", **asked)
    assert report.info.skipped == {"not JSON": 1, "text without a place to cut": 2}
    assert [bad.number for _, bad in report.examples] == [2, 4, 6]
    assert stream_tokens(tmp_path / "out", "train").tolist() == [1, 2] * 3


def test_a_row_that_fits_no_shard(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    source.write_bytes(lines(documents(50)))
    for changes, words in (
        ({"row_tokens": 40_000_000}, "--row-tokens is 40000000: a row of .* does not fit into a shard"),
        ({"val_row_tokens": 9_000, "val_fraction": 0.1}, "--val-row-tokens is 9000: .* Ask for shorter rows"),
    ):
        with pytest.raises(ValueError, match=words):
            run([source], tokenizer, tmp_path / "out", **changes)
    assert not (tmp_path / ".out.partial").exists()


def test_no_room_for_the_tokenizer(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    source.write_bytes(lines(documents(60)))
    limit = (tokenizer / "tokenizer.json").stat().st_size - 1000
    small = options([source], tokenizer, tmp_path / "out", shard_bytes=1 << 12, unit_bytes=1 << 12)
    code, said = in_child(small, file_limit=limit)
    assert code == 0
    assert "ConversionError: no space is left in" in said
    assert (tmp_path / ".out.partial" / "data" / "train" / "index.json").exists()
