"""Data, tokenizers and eval loaders that do not suit each other."""

from __future__ import annotations

import dataclasses

import pytest

from patch_algorithm.checks.data import (
    LoaderFacts,
    TokenizerFacts,
    check_components,
    check_loader,
    check_passes,
    check_tokenizer,
    check_tokenizer_context,
    check_vocabulary,
)
from patch_algorithm.checks.finding import Severity

TRAIN = LoaderFacts("train_loader.dataset", "text", True, 512, 512, "/pile/train")
EVAL = LoaderFacts("eval_loader.dataset", "text", False, 128, 128, "/pile/val")


def changed(facts: LoaderFacts, **changes: object) -> LoaderFacts:
    return dataclasses.replace(facts, **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (TRAIN, []),
        (EVAL, []),
        (changed(TRAIN, row_tokens=None), []),
        (changed(TRAIN, folder=None), []),
        (changed(TRAIN, asked=128), ["rows-cut-short"]),
        (changed(TRAIN, asked=128, name="pile", refusal="too long"), ["rows-cut-short"]),
        (changed(TRAIN, asked=128, name="pile"), []),
        (changed(EVAL, row_tokens=512), ["eval-rows-cut-short"]),
        (changed(EVAL, row_tokens=512, name="pile"), []),
        (changed(EVAL, row_tokens=512, name="pile", refusal="too long"), ["rows-cut-short"]),
        (changed(TRAIN, asked=1024), ["rows-shorter-than-asked"]),
        (changed(TRAIN, folder=None, expected_in="/none"), ["data-missing"]),
        (changed(TRAIN, folder=None, fault="dataset.json is not JSON"), ["data-damaged"]),
    ],
)
def test_loaders(loader: LoaderFacts, expected: list[str]) -> None:
    assert [one.id for one in check_loader(loader)] == expected


def test_the_share_of_tokens_that_is_lost() -> None:
    (found,) = check_loader(changed(TRAIN, asked=128))
    assert "reads 128 of the 512 tokens of each row in /pile/train" in found.found
    assert "75 % of the tokens, silently" in found.why
    assert "Set it to 512" in found.fix
    (refused,) = check_loader(changed(EVAL, row_tokens=512, name="pile", refusal="cannot be cut"))
    assert (refused.severity, refused.found) == (Severity.error, "cannot be cut")


def test_eval_loaders() -> None:
    train = changed(TRAIN, components=("ArXiv", "Github"))
    one = changed(EVAL, components=("ArXiv",))
    assert [each.id for each in check_components(train, [one])] == ["eval-one-component"]
    assert not check_components(train, [one, changed(EVAL, components=("Github",))])
    assert not check_components(train, [changed(EVAL, components=("ArXiv", "Github"))])
    assert not check_components(train, [EVAL])
    assert not check_components(TRAIN, [one])
    assert [each.id for each in check_components(TRAIN, [changed(EVAL, folder=TRAIN.folder)])] == [
        "eval-reads-training-data"
    ]


@pytest.mark.parametrize(
    ("run", "disk", "expected"),
    [
        (100, 100, []),
        (100, None, []),
        (None, 100, []),
        (40, 100, ["passes-over-data"]),
        (300, 100, ["passes-over-data"]),
        (600, 100, ["data-repeated"]),
    ],
)
def test_passes(run: float | None, disk: float | None, expected: list[str]) -> None:
    assert [one.id for one in check_passes(run, disk)] == expected


def test_passes_are_said_in_numbers() -> None:
    assert "0.4 passes" in check_passes(4e9, 10e9)[0].found
    assert "6 passes" in check_passes(60e9, 10e9)[0].found


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (TokenizerFacts("gpt2"), []),
        (TokenizerFacts("EleutherAI/gpt-neox-20b"), []),
        (TokenizerFacts("builtin_corpus", is_registered=True), []),
        (TokenizerFacts("/data/tok", folder_found=True, files_found=True), []),
        (TokenizerFacts("./tok"), ["tokenizer-not-found"]),
        (TokenizerFacts("/data/tok"), ["tokenizer-not-found"]),
        (TokenizerFacts("data/of/mine"), ["tokenizer-not-found"]),
        (TokenizerFacts("/data/tok", folder_found=True), ["tokenizer-not-found"]),
        (TokenizerFacts("tok", folder_found=True, files_found=True, fault="cut"), ["tokenizer-not-found"]),
        (TokenizerFacts("a", differences=(), data_name="b"), []),
        (
            TokenizerFacts("a", differences=("its normalizer differs",), data_name="a"),
            ["tokenizer-not-the-datas"],
        ),
        (TokenizerFacts("a", data_name="b"), ["tokenizer-named-otherwise"]),
        (TokenizerFacts("a", data_name="a"), []),
    ],
)
def test_tokenizers(tokenizer: TokenizerFacts, expected: list[str]) -> None:
    assert [one.id for one in check_tokenizer(tokenizer)] == expected


def test_vocabulary() -> None:
    (found,) = check_vocabulary(50_000, 50_277, "gpt-neox")
    assert found.id == "vocabulary-too-small"
    assert "50304" in found.fix
    (enlarged,) = check_vocabulary(50_000, 50_277, resizes=True)
    assert enlarged.id == "vocabulary-resized"
    assert not check_vocabulary(50_277, 50_277)
    assert not check_vocabulary(None, 50_277)


def test_the_context_that_an_exported_tokenizer_states() -> None:
    for stated, context in ((None, 8), (8, None), (8, 8)):
        assert check_tokenizer_context(stated, context) == []
    (found,) = check_tokenizer_context(32, 8)
    assert (found.id, found.severity) == ("tokenizer-context", Severity.note)
    assert "model_max_length=32, but the model's context is 8" in found.found
