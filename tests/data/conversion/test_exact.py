"""What comes out is, in token ids, what the tokenizer makes of each document, in order."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from patch_algorithm.data.conversion.documents import held_out
from patch_algorithm.data.conversion.report import empty_splits
from patch_algorithm.data.conversion.writing import component_folder
from patch_algorithm.data.corpus.tokenizer import END_OF_TEXT
from patch_algorithm.data.dataset.description import DatasetInfo
from patch_algorithm.data.dataset.integrity import check_shards
from patch_algorithm.data.loader.mixtures import PILE
from patch_algorithm.data.tokens.encoding import load_tokenizer
from tests.data.support import (
    COMPONENTS,
    ROW,
    VAL_ROW,
    documents,
    expected_ids,
    expected_tokens,
    files,
    lines,
    run,
    stream_tokens,
    units_of,
)

BOTH = [*documents(seed=0), *documents(seed=1)]


def is_val(document: dict[str, Any], fraction: float = 0.1) -> bool:
    return held_out(document["text"].encode(), fraction)


def test_rows_are_those_of_the_units_and_of_their_tails(
    converted: Path, pile: list[Path], tokenizer: Path
) -> None:
    sources = [path.read_bytes() for path in pile]
    assert sum(map(len, map(units_of, sources))) > 10
    for split in ("train", "val"):
        tokens = stream_tokens(converted, split)
        assert tokens.dtype == np.uint16

        def keep(document: dict[str, Any], split: str = split) -> bool:
            return is_val(document) == (split == "val")

        assert tokens.tolist() == expected_tokens(sources, tokenizer, converted, split, keep)


def test_no_token_is_lost_and_none_comes_twice(converted: Path, tokenizer: Path) -> None:
    for split, row in (("train", ROW), ("val", VAL_ROW)):
        ids = expected_ids([d for d in BOTH if is_val(d) == (split == "val")], tokenizer)
        wanted = Counter(token for own in ids for token in own)
        wanted.subtract(stream_tokens(converted, split).tolist())
        assert min(wanted.values()) >= 0
        assert sum(wanted.values()) < row, "less than a row is left out"


def test_the_record_counts_everything(converted: Path, tokenizer: Path) -> None:
    info = DatasetInfo.read(converted)
    for component in COMPONENTS:
        for split in ("train", "val"):
            own = [
                d
                for d in BOTH
                if d["meta"].get("pile_set_name") == component and is_val(d) == (split == "val")
            ]
            counts = info.components[component or "unlabelled"][split]
            assert counts.documents == len(own)
            assert counts.bytes == sum(len(d["text"].encode()) for d in own)
            assert counts.tokens == sum(map(len, expected_ids(own, tokenizer)))
    for stream in info.streams:
        total = sum(counts[stream.split].tokens for counts in info.components.values())
        assert stream.tokens + stream.tokens_left_out == total
        assert stream.tokens == stream.rows * stream.row_tokens
    assert check_shards(converted) == []
    assert info.skipped == {}
    assert load_tokenizer(str(converted / "tokenizer")).fingerprint == info.tokenizer.fingerprint


def test_every_component_has_a_stream(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    run(pile, tokenizer, tmp_path / "out", split_by_component=True, val_fraction=0.1)
    info = DatasetInfo.read(tmp_path / "out")
    sources = [path.read_bytes() for path in pile]
    assert sorted(stream.path for stream in info.streams) == sorted(
        f"{name}/{split}"
        for name in ("arxiv", "pile-cc", "wikipedia-en", "unlabelled")
        for split in ("train", "val")
    )
    for stream in info.streams:
        own = [
            d
            for d in BOTH
            if d["meta"].get("pile_set_name", "unlabelled") == stream.component
            and is_val(d) == (stream.split == "val")
        ]
        ids = expected_ids(own, tokenizer)
        assert stream.tokens_left_out == sum(map(len, ids)) % stream.row_tokens
        wanted = expected_tokens(sources, tokenizer, tmp_path / "out", stream.path, own.__contains__)
        assert stream_tokens(tmp_path / "out", stream.path).tolist() == wanted


def test_hold_out_goes_by_the_text_alone(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    run(pile[::-1], tokenizer, tmp_path / "out", val_fraction=0.1)
    sources = [path.read_bytes() for path in pile[::-1]]
    wanted = expected_tokens(sources, tokenizer, tmp_path / "out", "val", is_val)
    assert stream_tokens(tmp_path / "out", "val").tolist() == wanted


def test_bos_and_no_eos(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    spec = load_tokenizer(str(tokenizer))
    spec.tokenizer.bos_token = "<|padding|>"
    folder = tmp_path / "with_bos"
    spec.tokenizer.save_pretrained(str(folder))
    run(pile[:1], folder, tmp_path / "out", bos=True, eos=False, unit_bytes=1 << 20)
    bos = spec.tokenizer.convert_tokens_to_ids("<|padding|>")
    wanted = [token for ids in expected_ids(documents(seed=0), tokenizer) for token in [bos, *ids[:-1]]]
    tokens = stream_tokens(tmp_path / "out", "train").tolist()
    assert tokens == wanted[: len(tokens)]
    info = DatasetInfo.read(tmp_path / "out").tokenizer
    assert (info.adds_bos, info.adds_eos, info.bos_id) == (True, False, bos)


@pytest.mark.parametrize(("special", "ends"), [("text", 3), ("allow", 6)])
def test_text_that_mentions_end_of_text(special: str, ends: int, tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(lines([{"text": f"models end with {END_OF_TEXT} and go on"}] * 3))
    run([source], tokenizer, tmp_path / "out", row_tokens=2, special_tokens=special)
    info = DatasetInfo.read(tmp_path / "out")
    tokens = stream_tokens(tmp_path / "out", "train")
    cut_off = info.streams[0].tokens_left_out
    assert (tokens == info.tokenizer.eos_id).sum() == ends - cut_off


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    model = models.WordLevel({f"w{index}": index for index in range(2**16 + 1)}, unk_token="w0")
    words = Tokenizer(model)
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(tmp_path / "words")
    source = tmp_path / "a.jsonl"
    source.write_bytes(lines([{"text": "w65536 w2"}, {"text": "w65535"}]))
    run([source], tmp_path / "words", tmp_path / "out", row_tokens=5, special_tokens="allow")
    assert DatasetInfo.read(tmp_path / "out").dtype == "uint32"
    tokens = stream_tokens(tmp_path / "out", "train")
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == [65536, 2, 1, 65535, 1]


def test_compressed_shards_hold_the_same_rows(
    pile: list[Path], tokenizer: Path, converted: Path, tmp_path: Path
) -> None:
    run(pile, tokenizer, tmp_path / "out", val_fraction=0.1, compression="zstd")
    assert not list((tmp_path / "out").rglob("*.mds"))
    assert (stream_tokens(tmp_path / "out", "train") == stream_tokens(converted, "train")).all()


def test_shards_are_limited(converted: Path) -> None:
    sizes = [path.stat().st_size for path in (converted / "train").rglob("*.mds")]
    assert len(sizes) > 3
    assert max(sizes) <= 1 << 14


def test_nothing_but_the_dataset_is_left(converted: Path) -> None:
    assert [path.name for path in converted.parent.iterdir()] == ["out"]
    top = {name.split("/")[0] for name in files(converted)}
    assert top == {"dataset.json", "tokenizer", "train", "val"}
    assert str(converted) not in (converted / "dataset.json").read_text()


def test_components_have_folders_of_their_own(tokenizer: Path, tmp_path: Path) -> None:
    names = ["C", "C++", "C#", "c", "Github", "GitHub", "github", "Tokenizer", "tokenizer", "x" * 400, "中文"]
    source = tmp_path / "a.jsonl"
    source.write_bytes(lines({"text": "x" * 200, "meta": {"pile_set_name": name}} for name in names))
    run([source], tokenizer, tmp_path / "out", split_by_component=True)
    streams = {stream.component: stream for stream in DatasetInfo.read(tmp_path / "out").streams}
    assert streams.keys() == set(names)
    folders = {name: stream.path.removesuffix("/train") for name, stream in streams.items()}
    assert len(set(folders.values())) == len(names)
    assert (folders["Github"], folders["c"]) == ("github", "c")
    assert folders["C++"].startswith("c-")
    assert all(len(folder) < 60 and folder != "tokenizer" for folder in folders.values())
    for stream in streams.values():
        assert len(stream_tokens(tmp_path / "out", stream.path)) == stream.tokens > 0


def test_the_piles_components_keep_their_short_folders() -> None:
    folders = {component_folder(name): name for name in PILE}
    assert len(folders) == len(PILE)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", folder) for folder in folders)
    assert folders["pile-cc"] == "Pile-CC"
    assert not any(re.search("-[0-9a-f]{8}$", folder) for folder in folders)


@pytest.mark.parametrize(
    ("fraction", "by_component", "words"),
    [
        (1e-9, False, "--val-fraction leaves val without a row: no document was selected"),
        (1e-9, True, "--val-fraction leaves val of ArXiv without a row: no document was selected"),
        (0.05, False, "--val-fraction leaves val without a row: .* tokens do not fill a row"),
    ],
)
def test_nothing_held_out_is_told(
    fraction: float,
    by_component: bool,
    words: str,
    pile: list[Path],
    tokenizer: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = {"val_row_tokens": 8000 if fraction > 0.01 else 8, "split_by_component": by_component}
    report = run(pile[:1], tokenizer, tmp_path / "out", val_fraction=fraction, shard_bytes=1 << 15, **asked)
    assert re.search(words, str(report))
    assert re.search(words, caplog.text)


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_sources_without_a_row_are_told(
    split: str, pile: list[Path], tokenizer: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small.jsonl"
    small.write_bytes(lines([{"text": "the model", "meta": {"pile_set_name": "ArXiv"}}]))
    sources = [pile[0], f"{split}={small}"]
    report = run(sources, tokenizer, tmp_path / "a", val_row_tokens=4000)
    (line,) = (line for line in str(report).splitlines() if "the split" in line)
    assert line.startswith(f"the split {split} has no row: its ")
    assert "tokens do not fill a row of 4,000. Ask for shorter rows with --val-row-tokens, or give" in line
    assert "--val-fraction" not in str(report)
    # Of the components, only that of the source is expected there.
    report = run(sources, tokenizer, tmp_path / "b", val_row_tokens=4000, split_by_component=True)
    (line,) = (line for line in str(report).splitlines() if "the split" in line)
    assert line.startswith(f"the split {split} of ArXiv has no row: its ")


def test_held_out_sources_without_a_document_are_told(
    pile: list[Path], tokenizer: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{\n")
    report = run([pile[0], f"test={bad}"], tokenizer, tmp_path / "out", on_error="skip")
    assert "the split test has no row: no document of its sources could be read." in str(report)


def test_what_is_held_out_is_not_told_to_be_missing(converted: Path) -> None:
    assert empty_splits(DatasetInfo.read(converted)) == []


def test_small_shards_are_not_written_for_units(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    run(pile, tokenizer, tmp_path / "out", split_by_component=True, val_fraction=0.1, shard_bytes=1 << 15)
    for stream in DatasetInfo.read(tmp_path / "out").streams:
        shards = json.loads((tmp_path / "out" / stream.path / "index.json").read_text())["shards"]
        small = [s["raw_data"]["basename"] for s in shards if s["raw_data"]["bytes"] < (1 << 15) / 16]
        assert all(name.startswith("tails/") for name in small)
        assert len([name for name in small if name.startswith("tails/")]) <= 1


def test_too_little_text_for_a_row(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(lines([{"text": "short"}]))
    with pytest.raises(ValueError, match=r"do not fill one row of 32; ask for shorter rows"):
        run([source], tokenizer, tmp_path / "out")


def test_other_metadata_is_no_component(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    metas = (None, "ArXiv", ["ArXiv"], {"pile_set_name": 3}, {"pile_set_name": " "}, {"set": "x"})
    source.write_text("".join(json.dumps({"text": "x" * 50, "meta": meta}) + "\n" for meta in metas))
    run([source], tokenizer, tmp_path / "out")
    components = DatasetInfo.read(tmp_path / "out").components
    assert list(components) == ["unlabelled"]
    assert components["unlabelled"]["train"].documents == len(metas)
