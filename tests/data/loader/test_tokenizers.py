"""The run's tokenizer is the one that the data was written with, or the run does not start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from patch_algorithm.data.tokens.identity import fingerprint, largest_id
from tests.data.loader.written import build, load, random_rows, rows_of, write_dataset, write_stream
from tests.data.support import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    return load(corpus)


@pytest.fixture(scope="module")
def other(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same vocabulary, two entries swapped."""
    text = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = text["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(text)), eos_token="<eos>", pad_token="<pad>"
    )


@pytest.fixture(scope="module")
def data(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    streams = {(None, "train"): random_rows(8, 8), (None, "val"): random_rows(4, 8)}
    return write_dataset(tmp_path_factory.mktemp("data"), tokenizer, streams)


def test_llm_foundrys_tokenizer_is_recognised(corpus: Path, data: Path) -> None:
    from llmfoundry.utils.builders import build_tokenizer

    built = build_tokenizer(str(corpus / "tokenizer"), {"model_max_length": 7})
    assert len(rows_of(build(built, local=str(data), max_seq_len=8))) == 8  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("split", ["train", "val"])
def test_another_tokenizer_is_refused(split: str, other: PreTrainedTokenizerFast, data: Path) -> None:
    words = (
        rf"{'train' if split == 'train' else 'eval'}_loader\.dataset: .* written with the tokenizer 'tiny'"
    )
    with pytest.raises(ValueError, match=words) as error:
        build(other, local=str(data), split=split, max_seq_len=8)
    assert "Set tokenizer.name to" in str(error.value)


def test_it_is_checked_for_a_folder_within_the_data_set_and_for_every_stream(
    other: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="was written with the tokenizer"):
        build(other, local=str(data / "train"), split=None, max_seq_len=8)
    write_dataset(tmp_path, other, {(None, "train"): random_rows(8, 8)})
    streams = {"right": {"local": str(data)}, "wrong": {"local": str(tmp_path)}}
    with pytest.raises(ValueError, match=r"dataset\.streams\.wrong: .* was written with"):
        build(tokenizer, streams=streams, max_seq_len=8)


def test_data_without_a_description_is_used_with_a_warning(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    write_stream(tmp_path / "train", random_rows(8, 8))
    with pytest.warns(
        UserWarning, match=r"no dataset\.json can be read in .*, so it cannot be checked"
    ) as warned:
        spec = build(tokenizer, local=str(tmp_path), max_seq_len=8)
    assert len(warned) == 1
    assert len(rows_of(spec)) == 8


def test_a_description_that_cannot_be_read_is_no_missing_one(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    write_stream(tmp_path / "train", random_rows(8, 8))
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"train_loader\.dataset: dataset\.json in .* is not JSON"):
        build(tokenizer, local=str(tmp_path), max_seq_len=8)


def test_somebody_elses_description_further_up_is_none(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    write_stream(tmp_path / "mine" / "train", random_rows(8, 8))
    (tmp_path / "dataset.json").write_text('{"title": "not ours"}')
    with pytest.warns(UserWarning, match="so it cannot be checked"):
        spec = build(tokenizer, local=str(tmp_path / "mine"), max_seq_len=8)
    assert len(rows_of(spec)) == 8


def test_a_tokenizer_of_the_data_that_is_damaged_is_named(
    other: PreTrainedTokenizerFast, data: Path, tmp_path: Path
) -> None:
    file = shutil.copytree(data, tmp_path / "data") / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text("utf-8")[:200])
    words = r"what differs is not known, because its tokenizer/tokenizer\.json cannot be read"
    with pytest.raises(ValueError, match=words):
        build(other, local=str(tmp_path / "data"), max_seq_len=8)


def test_another_end_of_text_is_refused(corpus: Path, data: Path) -> None:
    # The ids of text are the same, as with the base and the chat form of a model's tokenizer.
    same = load(corpus)
    same.eos_token = same.pad_token
    with pytest.raises(ValueError, match=r"use the EOS token 94, but that of the run's tokenizer .* is 95"):
        build(same, local=str(data), max_seq_len=8)


def test_a_loader_needs_a_tokenizer(data: Path) -> None:
    with pytest.raises(ValueError, match="needs a tokenizer"):
        build(None, local=str(data), max_seq_len=8)  # pyright: ignore[reportArgumentType]


def with_change(tokenizer: PreTrainedTokenizerFast, change: Callable[[dict[str, Any]], None]) -> Any:
    text = json.loads(tokenizer.backend_tokenizer.to_str())
    change(text)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(text)), eos_token="<eos>", pad_token="<pad>"
    )


def test_an_added_token_that_the_data_cannot_hold_changes_nothing(
    tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    more = with_change(tokenizer, lambda text: None)
    more.add_special_tokens({"additional_special_tokens": ["<more>"]})
    assert fingerprint(more) != fingerprint(tokenizer)
    assert len(rows_of(build(more, local=str(data), max_seq_len=8))) == 8


def test_a_special_token_that_the_data_does_not_hold_may_be_missing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    more = with_change(tokenizer, lambda text: None)
    more.add_special_tokens({"additional_special_tokens": ["<more>"]})
    data = write_dataset(tmp_path, more, {(None, "train"): random_rows(8, 8)})
    assert len(rows_of(build(tokenizer, local=str(data), max_seq_len=8))) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda text: text["model"]["vocab"].update(w1=2, w2=1),
            "2 of its 96 tokens have another id or none",
        ),
        (lambda text: text.update(normalizer={"type": "Lowercase"}), "its normalizer differs"),
        (
            lambda text: text.update(pre_tokenizer={"type": "BertPreTokenizer"}),
            "its pre-tokenizer differs",
        ),
        (lambda text: text["model"].update(unk_token="w3"), "its model has another unk_token"),
    ],
)
def test_what_differs_is_named(
    change: Callable[[dict[str, Any]], None], words: str, tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    assert (vocabulary["w1"], vocabulary["w2"]) == (1, 2)
    with pytest.raises(ValueError, match=words):
        build(with_change(tokenizer, change), local=str(data), max_seq_len=8)


def test_a_tokenizer_in_python_is_compared_by_its_ids(tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path / "tokenizer")
    fast = AutoTokenizer.from_pretrained(folder)
    data = write_dataset(tmp_path / "data", fast, {(None, "train"): random_rows(4, 8)}, eos=fast.eos_token_id)
    model = json.loads(fast.backend_tokenizer.to_str())["model"]
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
        vocabulary = dict(model["vocab"])
        if name == "wrong":
            vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        (tmp_path / name / "vocab.json").write_text(json.dumps(vocabulary))
        merges = "\n".join(" ".join(merge) for merge in model["merges"])
        (tmp_path / name / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    ends = {"eos_token": fast.eos_token, "unk_token": fast.eos_token, "bos_token": fast.eos_token}
    right = GPT2Tokenizer.from_pretrained(tmp_path / "right", **ends, pad_token=fast.eos_token)
    assert len(rows_of(build(right, local=str(data), max_seq_len=8))) == 4
    wrong = GPT2Tokenizer.from_pretrained(tmp_path / "wrong", **ends, pad_token=fast.eos_token)
    with pytest.raises(ValueError, match=r"2 of its .* tokens have another id or none, such as 'a'"):
        build(wrong, local=str(data), max_seq_len=8)


def test_ids_with_holes_are_bound_by_the_largest(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def widen(text: dict[str, Any]) -> None:
        text["model"]["vocab"] = {token: 2 * own for token, own in text["model"]["vocab"].items()}
        for token in text["added_tokens"]:
            token["id"] *= 2

    holes = with_change(tokenizer, widen)
    assert (len(holes), largest_id(holes)) == (96, 190)
    rows = 2 * random_rows(8, 8)
    data = write_dataset(tmp_path, holes, {(None, "train"): rows}, eos=188)
    assert rows_of(build(holes, local=str(data), max_seq_len=8)) == rows.tolist()
    assert rows.max() > 96


def test_a_loader_is_named_as_far_as_it_is_known(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    for options, loader in (
        ({"split": None}, "^eval_loader or train_loader"),
        ({"split": "trian"}, "^eval_loader"),
        ({"split": "train", "shuffle": True, "max_seq_len": 7}, "^train_loader"),
        ({"split": "train", "max_seq_len": 7}, "^eval_loader or train_loader"),
    ):
        with pytest.raises(ValueError, match=rf"{loader}\.dataset"):
            build(tokenizer, **({"local": str(data), "max_seq_len": 8} | options))
