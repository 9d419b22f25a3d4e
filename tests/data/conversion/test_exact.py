"""What comes out is, in token ids, what the tokenizer makes of each document, in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from patch_algorithm.data.conversion.documents import held_out
from patch_algorithm.data.corpus.tokenizer import END_OF_TEXT
from patch_algorithm.data.dataset.description import DatasetInfo, check_shards
from patch_algorithm.data.tokens.encoding import load_tokenizer
from tests.data.support import (
    COMPONENTS,
    ROW,
    VAL_ROW,
    documents,
    expected_ids,
    files,
    lines,
    run,
    stream_tokens,
)

BOTH = [*documents(seed=0), *documents(seed=1)]


def split_at(tokens: np.ndarray, eos: int) -> list[list[int]]:
    ends = np.flatnonzero(tokens == eos) + 1
    return [part.tolist() for part in np.split(tokens, ends)]


def is_val(document: dict[str, Any], fraction: float = 0.1) -> bool:
    return held_out(document["text"].encode(), fraction)


def test_rows_joined_and_split_at_eos_are_the_documents_in_order(converted: Path, tokenizer: Path) -> None:
    eos = load_tokenizer(str(tokenizer)).eos_id
    assert eos is not None
    for split, row in (("train", ROW), ("val", VAL_ROW)):
        wanted = expected_ids([d for d in BOTH if is_val(d) == (split == "val")], tokenizer)
        tokens = stream_tokens(converted, split)
        assert tokens.dtype == np.uint16
        *whole, cut = split_at(tokens, eos)
        assert whole == wanted[: len(whole)]
        rest = [token for ids in wanted[len(whole) :] for token in ids]
        assert rest[: len(cut)] == cut
        assert len(rest) - len(cut) < row, "less than a row is left out"


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
        wanted = [token for ids in expected_ids(own, tokenizer) for token in ids]
        assert stream.tokens_left_out == len(wanted) % stream.row_tokens
        assert stream_tokens(tmp_path / "out", stream.path).tolist() == wanted[: stream.tokens]


def test_hold_out_goes_by_the_text_alone(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    run(pile[::-1], tokenizer, tmp_path / "out", val_fraction=0.1)
    wanted = expected_ids([d for d in documents(seed=1) + documents(seed=0) if is_val(d)], tokenizer)
    tokens = stream_tokens(tmp_path / "out", "val").tolist()
    assert tokens == [token for ids in wanted for token in ids][: len(tokens)]


def test_bos_and_no_eos(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    spec = load_tokenizer(str(tokenizer))
    spec.tokenizer.bos_token = "<|padding|>"
    folder = tmp_path / "with_bos"
    spec.tokenizer.save_pretrained(str(folder))
    run(pile[:1], folder, tmp_path / "out", bos=True, eos=False)
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
    sizes = [path.stat().st_size for path in (converted / "train").glob("*.mds")]
    assert len(sizes) > 3
    assert max(sizes) <= 1 << 14


def test_nothing_but_the_dataset_is_left(converted: Path) -> None:
    assert [path.name for path in converted.parent.iterdir()] == ["out"]
    top = {name.split("/")[0] for name in files(converted)}
    assert top == {"dataset.json", "tokenizer", "train", "val"}
    assert str(converted) not in (converted / "dataset.json").read_text()


@pytest.mark.parametrize(
    ("names", "words"),
    [(("Pile-CC", "pile cc"), "would share the folder 'pile-cc'"), (("Tokenizer",), "'tokenizer'")],
)
def test_components_that_would_share_a_folder(
    names: tuple[str, ...], words: str, tokenizer: Path, tmp_path: Path
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(lines({"text": "x" * 200, "meta": {"pile_set_name": name}} for name in names))
    with pytest.raises(ValueError, match=words):
        run([source], tokenizer, tmp_path / "out", split_by_component=True)


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
