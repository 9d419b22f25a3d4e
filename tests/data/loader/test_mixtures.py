"""Mixtures of components: the arithmetic, and what comes out of the loader."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from patch_algorithm.data.loader.mixtures import PILE, mixture_shares
from tests.data.loader.written import build, load, random_rows, rows_of, write_dataset

SIZES = {"ArXiv": 60, "Github": 300, "PubMed Central": 100, "house": 40, "Enron Emails": 0}


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    return load(corpus)


@pytest.fixture(scope="module")
def data(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 8 whose first token says which component they are of."""
    streams = {}
    for number, (name, size) in enumerate(SIZES.items()):
        rows = random_rows(size, 8, seed=number)
        rows[:, 0] = number
        streams[name, "train"] = rows
    streams["ArXiv", "val"] = random_rows(4, 8)
    return write_dataset(tmp_path_factory.mktemp("mixed"), tokenizer, streams)


def drawn(tokenizer: PreTrainedTokenizerFast, data: Path, **dataset: Any) -> Counter[str]:
    """Rows of each component in an epoch."""
    spec = build(tokenizer, 50, local=str(data), max_seq_len=8, **dataset)
    names = list(SIZES)
    return Counter(names[row[0]] for row in rows_of(spec))


def test_the_pile_is_whole() -> None:
    assert len(PILE) == 22
    assert math.fsum(PILE.values()) == pytest.approx(1, abs=1e-9)
    assert max(PILE, key=PILE.__getitem__) == "Pile-CC"


@given(st.dictionaries(st.sampled_from(sorted(PILE)), st.floats(0.01, 1e6), min_size=1))
def test_only_ratios_count(weights: dict[str, float]) -> None:
    shares = mixture_shares(weights, list(PILE), "components")
    assert math.fsum(shares.values()) == pytest.approx(1)
    total = math.fsum(weights.values())
    assert shares == pytest.approx({name: weight / total for name, weight in weights.items()})


@given(st.sets(st.sampled_from(sorted(PILE)), min_size=1))
def test_what_is_absent_leaves_the_ratios_of_the_rest(present: set[str]) -> None:
    shares = mixture_shares("pile", sorted(present), "components")
    assert shares.keys() == present
    for name in present:
        assert shares[name] == pytest.approx(PILE[name] / math.fsum(PILE[one] for one in present))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"Arxiv": 1}, r"components names Arxiv, which is a component neither .* has ArXiv, mine"),
        ({"ArXiv": -1}, r"components\.ArXiv is -1; expected a weight"),
        ({"ArXiv": math.inf}, r"components\.ArXiv is inf"),
        ({"ArXiv": math.nan}, r"components\.ArXiv is nan"),
        ({"ArXiv": "10%"}, r"components\.ArXiv is '10%'"),
        ({"ArXiv": True}, r"components\.ArXiv is True"),
        ({"ArXiv": 0}, r"leaves no component .* has ArXiv, mine"),
        ({"Books3": 1}, r"leaves no component"),
        ({}, r"leaves no component"),
        ("piles", r"components is 'piles'; expected 'pile'"),
        (["ArXiv"], r"components is \['ArXiv'\]; expected 'pile'"),
    ],
)
def test_bad_mixtures(asked: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mixture_shares(asked, ["ArXiv", "mine"], "components")


def test_weights_are_the_shares_of_the_rows(
    tokenizer: PreTrainedTokenizerFast, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"ArXiv": 3, "Github": 1, "house": 1, "Books3": 4}
    with caplog.at_level(logging.INFO):
        found = drawn(tokenizer, data, components=asked, epoch_size=500, shuffle=True)
    assert found == {"ArXiv": 300, "Github": 100, "house": 100}
    assert "not in this dataset, so their share goes to the others: Books3" in caplog.text
    assert "in this dataset but not used: PubMed Central" in caplog.text
    assert "train_loader.dataset (ArXiv): 60.00 % of the rows, 5.00 passes an epoch" in caplog.text


def test_the_pile_by_name(
    tokenizer: PreTrainedTokenizerFast, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = drawn(tokenizer, data, components="pile", epoch_size=1000, shuffle=True)
    there = {name: PILE[name] for name in ("ArXiv", "Github", "PubMed Central")}
    assert found.keys() == there.keys()
    for name, share in there.items():
        assert found[name] / 1000 == pytest.approx(share / sum(there.values()), abs=1 / 1000)
    assert "Enron Emails" in caplog.text


def test_without_a_mixture_every_row_comes_once(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    assert drawn(tokenizer, data) == {name: size for name, size in SIZES.items() if size}


def test_splits_and_their_components(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    assert len(rows_of(build(tokenizer, local=str(data), split="val", max_seq_len=8))) == 4
    with pytest.raises(ValueError, match=r"leaves no component.* has ArXiv\."):
        build(tokenizer, local=str(data), split="val", max_seq_len=8, components={"Github": 1})
    with pytest.raises(ValueError, match="split is 'test'; the dataset has train, val"):
        build(tokenizer, local=str(data), split="test", max_seq_len=8)


def test_a_component_is_a_data_set_of_its_own(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    spec = build(tokenizer, local=str(data / "github"), max_seq_len=8)
    assert len(rows_of(spec)) == SIZES["Github"]


def test_streams_with_proportions(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    streams = {
        "code": {"local": str(data / "github"), "proportion": 0.25},
        "papers": {"local": str(data / "arxiv"), "proportion": 0.75},
    }
    spec = build(tokenizer, 50, streams=streams, max_seq_len=8, epoch_size=400)
    names = list(SIZES)
    assert Counter(names[row[0]] for row in rows_of(spec)) == {"ArXiv": 300, "Github": 100}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a": {}}, r"train_loader\.dataset\.streams\.a has neither local nor remote"),
        ({"a": {"locale": "x"}}, r"dataset\.streams\.a has the unknown keys locale"),
        ({"a": {"local": "DATA"}}, r"streams\.a is a dataset that is split by component"),
        ({"a": {"local": "DATA", "split": "val", "repeat": "2"}}, r"streams\.a is a dataset that is split"),
    ],
)
def test_bad_streams(
    changes: dict[str, dict[str, Any]], words: str, tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    streams = {
        name: {key: value.replace("DATA", str(data)) for key, value in options.items()}
        for name, options in changes.items()
    }
    with pytest.raises(ValueError, match=words):
        build(tokenizer, streams=streams, max_seq_len=8)


@pytest.mark.parametrize(
    ("streams", "words"),
    [
        (["a"], r"train_loader\.dataset\.streams is a list; expected a mapping"),
        ({"a": None}, r"train_loader\.dataset\.streams\.a is None; expected a mapping with local or remote"),
    ],
)
def test_streams_of_another_form(streams: Any, words: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=words):
        build(tokenizer, streams=streams, max_seq_len=8)


def test_streams_and_components_exclude_each_other(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    streams = {"code": {"local": str(data / "github")}}
    with pytest.raises(ValueError, match="has both streams and components"):
        build(tokenizer, streams=streams, components="pile", max_seq_len=8)


def test_components_need_streams_of_their_own(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    write_dataset(tmp_path, tokenizer, {(None, "train"): random_rows(4, 8)})
    with pytest.raises(
        ValueError, match=r"dataset\.components needs .* Convert it with --split-by-component"
    ):
        build(tokenizer, local=str(tmp_path), components="pile", max_seq_len=8)
