"""The run's tokenizer is the one that the data was written with, or the run does not start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.data.loader.written import build, load, random_rows, rows_of, write_dataset, write_stream


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


def test_another_end_of_text_is_refused(corpus: Path, data: Path) -> None:
    # The ids of text are the same, as with the base and the chat form of a model's tokenizer.
    same = load(corpus)
    same.eos_token = same.pad_token
    with pytest.raises(ValueError, match=r"have the EOS token 94, and that of the run's tokenizer .* is 95"):
        build(same, local=str(data), max_seq_len=8)


def test_a_loader_needs_a_tokenizer(data: Path) -> None:
    with pytest.raises(ValueError, match="needs a tokenizer"):
        build(None, local=str(data), max_seq_len=8)  # pyright: ignore[reportArgumentType]
