"""Which files are meant by what is named, and that none is passed over, or trained on, in silence."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from patch_algorithm.data.readers.arrays import array_lines
from patch_algorithm.data.readers.blocks import Position, SourceDamage
from patch_algorithm.data.readers.find import find_sources
from patch_algorithm.data.readers.hub import HubSource
from patch_algorithm.data.readers.lines import LineSource
from patch_algorithm.data.readers.splits import named_split
from tests.data.readers.test_sources import READING, check_reading_goes_on
from tests.data.support import documents, lines, run

FOUND = documents(30)
COMPRESSIONS: dict[str, Any] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'{"text": "a"}\n')
    return folder


def names(sources: Sequence[Any], folder: Path) -> dict[str, str | None]:
    return {source.path.relative_to(folder).as_posix(): source.split for source in sources}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", [".jsonl", ".ndjson", ".json", ".JSONL", "array.json", "indented.Json"])
def test_every_form_and_compression_is_read(form: str, compression: str, tmp_path: Path) -> None:
    text = lines(FOUND)
    if form in ("array.json", "indented.Json"):
        text = json.dumps(FOUND, indent=1 if form == "indented.Json" else None).encode()
    path = tmp_path / f"a{form}{compression}"
    path.write_bytes(COMPRESSIONS[compression](text))
    (source,) = find_sources([str(tmp_path)])
    assert isinstance(source, LineSource)
    check_reading_goes_on(source, least=2)
    text = b"".join(
        block.data for block in source.blocks(Position(), READING) if isinstance(block.data, bytes)
    )
    assert [json.loads(line) for line in text.split(b"\n") if line.strip()] == FOUND


@given(
    st.lists(st.recursive(st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))),
    st.integers(1, 7),
    st.booleans(),
)
def test_the_elements_of_an_array_are_lines(found: list[Any], piece: int, indented: bool) -> None:
    data = b"\xef\xbb\xbf \n" + json.dumps(found, indent=2 if indented else None, ensure_ascii=False).encode()
    text = b"".join(array_lines([data[:4], *(data[at : at + piece] for at in range(4, len(data), piece))]))
    assert [json.loads(line) for line in text.split(b"\n") if line.strip()] == found


@pytest.mark.parametrize(
    ("text", "words", "whole"),
    [
        ('[{"text": "a"}, {"text": "b', "ends within a JSON array", 1),
        ('[{"text": "a"}] {"text": "b"}', "text outside of its JSON array", 1),
        ('[{"text": "a"}]]', "text outside of its JSON array", 1),
    ],
)
def test_broken_arrays(text: str, words: str, whole: int) -> None:
    found: list[bytes] = []
    with pytest.raises(SourceDamage, match=words):
        found.extend(array_lines([text[:9].encode(), text[9:].encode()]))
    assert b"".join(found).count(b"\n") == whole


def test_a_bare_line_end_in_a_string_ends_no_line() -> None:
    text = b"".join(array_lines([b'["a\nb", 1]']))
    assert text.split(b"\n") == [b'"a\rb"', b" 1", b""]


def test_what_a_folder_holds_besides_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    touch(tmp_path, "a.jsonl", "b/c.JSON.GZ", "README.md", ".hidden/d.jsonl", "b/.gitattributes", "LICENSE")
    assert set(names(find_sources([str(tmp_path)]), tmp_path)) == {"a.jsonl", "b/c.JSON.GZ"}
    assert f"{tmp_path}: 2 files" in caplog.text
    assert "skipped: LICENSE, README.md, b/.gitattributes" in caplog.text
    touch(tmp_path, "b/e.txt", "f.jsonl.zip", "g.csv")
    with pytest.raises(ValueError, match=r"that would be skipped \(3\): b/e\.txt, f\.jsonl\.zip, g"):
        find_sources([str(tmp_path)])
    assert len(find_sources([str(tmp_path)], on_error="skip")) == 2
    assert "skipped: b/e.txt, f.jsonl.zip, g.csv, LICENSE" in caplog.text


def test_links_are_followed_and_broken_ones_are_errors(tmp_path: Path) -> None:
    folder = touch(tmp_path / "data", "a.jsonl")
    touch(tmp_path / "blobs", "x", "more/b.jsonl")
    (folder / "c.jsonl").symlink_to(tmp_path / "blobs" / "x")
    (folder / "inner").symlink_to(tmp_path / "blobs" / "more")
    (folder / "inner" / "circle").symlink_to(folder)
    assert set(names(find_sources([str(folder)]), folder)) == {"a.jsonl", "c.jsonl", "inner/b.jsonl"}
    (folder / "d.jsonl").symlink_to("nowhere")
    for name in (folder, folder / "d.jsonl", folder / "*"):
        with pytest.raises(ValueError, match=r"d\.jsonl.* is a link to nowhere, which does not exist"):
            find_sources([str(name)])


def test_patterns_match_folders_too(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jsonl", "y/z/b.jsonl")
    expected = {"x/a.jsonl", "y/z/b.jsonl"}
    for pattern in ("*", "**", "**/*.jsonl"):
        assert set(names(find_sources([f"{tmp_path}/{pattern}"]), tmp_path)) == expected
    touch(tmp_path, "c.txt")
    with pytest.raises(ValueError, match=r"c\.txt: expected a file that ends in \.jsonl"):
        find_sources([f"{tmp_path}/*"])


def test_a_mistyped_path_is_no_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "data/training/a.jsonl", "data/b.jsonl")
    with pytest.raises(ValueError, match=r"data/trainin: there is no such file .* mean data/training\?"):
        find_sources(["data/trainin"])
    with pytest.raises(ValueError, match=r"--source nodata/train: there is no such file or folder here"):
        find_sources(["nodata/train"])


HUB = ("train-0.parquet", "train-1.parquet", "validation-0.parquet", "test-0.parquet")
PILE = ("train/00.jsonl.zst", "train/01.jsonl.zst", "val.jsonl.zst", "test.jsonl.zst")


@pytest.mark.parametrize("content", [HUB, PILE])
def test_files_named_for_validation_and_test_are_splits_of_their_own(
    content: tuple[str, ...], tmp_path: Path
) -> None:
    touch(tmp_path, *content)
    expected = dict.fromkeys(content) | {content[2]: "val", content[3]: "test"}
    assert names(find_sources([str(tmp_path)]), tmp_path) == expected
    assert names(find_sources([f"{tmp_path}/**/*.*"]), tmp_path) == expected
    every = find_sources([str(tmp_path)], splits="all-train")
    assert names(every, tmp_path) == dict.fromkeys(content)


def test_where_none_is_named_for_training_the_command_asks(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "dev/b.jsonl", "contest.jsonl", "latest_evaluations.jsonl")
    with pytest.raises(
        ValueError, match=r"1 of 4 files are named for validation or test, such as .*b\.jsonl"
    ):
        find_sources([str(tmp_path)])
    named = names(find_sources([str(tmp_path)], splits="by-name"), tmp_path)
    assert [name for name, split in named.items() if split] == ["dev/b.jsonl"]
    with pytest.raises(ValueError, match="named for validation or test"):
        find_sources([str(tmp_path / "a.jsonl"), str(tmp_path / "dev" / "b.jsonl")])
    with pytest.raises(ValueError, match="named for validation or test"):
        find_sources([str(tmp_path / "dev")])


def test_a_split_can_be_given(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "b/c.jsonl", "val.jsonl", "val=odd.jsonl")
    given = [f"val={tmp_path / 'b'}", f"test={tmp_path / 'val.jsonl'}", str(tmp_path / "a.jsonl")]
    found = names(find_sources(given), tmp_path)
    assert found == {"b/c.jsonl": "val", "val.jsonl": "test", "a.jsonl": None}
    assert names(find_sources([f"train={tmp_path / 'val.jsonl'}"]), tmp_path) == {"val.jsonl": None}
    assert not find_sources([str(tmp_path / "val=odd.jsonl")], splits="all-train")[0].split
    # What was converted for one split is not taken for the other when a conversion is resumed.
    (plain,), (held,) = (
        find_sources([str(tmp_path / "a.jsonl")]),
        find_sources([f"val={tmp_path / 'a.jsonl'}"]),
    )
    digests = [next(iter(one.blocks(Position(), READING))).digest() for one in (plain, held)]
    assert plain.stamp() != held.stamp()
    assert digests[0] != digests[1]


def test_a_split_of_a_hub_dataset_can_be_given(tmp_path: Path) -> None:
    touch(tmp_path, "train-0.jsonl", "validation-0.jsonl")
    train, val = find_sources([f"hf://{tmp_path}", f"val=hf://{tmp_path}"])
    assert isinstance(train, HubSource)
    assert isinstance(val, HubSource)
    assert (train.hub_split, train.split, val.hub_split, val.split) == ("train", None, "validation", "val")


@pytest.mark.parametrize(
    ("parts", "split"),
    [
        (["x", "c4-validation.00000-of-00008.json.gz"], "val"),
        (["Test", "a.jsonl"], "test"),
        (["train", "dev-notes.jsonl"], "train"),
        (["contest", "latest.jsonl"], None),
        (["x", "train00.jsonl"], "train"),
    ],
)
def test_names_of_splits(parts: list[str], split: str | None) -> None:
    assert named_split(parts) == split


def test_splits_are_converted_as_named(tokenizer: Path, tmp_path: Path) -> None:
    for name, number in (("train/0.jsonl", 120), ("val.jsonl", 40), ("test.jsonl", 20)):
        touch(tmp_path, f"in/{name}").joinpath("in", name).write_bytes(lines(documents(number)))
    report = run([tmp_path / "in"], tokenizer, tmp_path / "out")
    counted = {"train": 0, "val": 0, "test": 0}
    for splits in report.info.components.values():
        for split, counts in splits.items():
            counted[split] += counts.documents
    assert counted == {"train": 120, "val": 40, "test": 20}
    assert {s.path: s.row_tokens for s in report.info.streams} == {"test": 8, "train": 32, "val": 8}
    assert "3 sources were read" in str(report)
    with pytest.raises(ValueError, match="some sources are already in the split val"):
        run([tmp_path / "in"], tokenizer, tmp_path / "out2", val_fraction=0.1)
