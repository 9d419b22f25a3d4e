"""The ids of a text that was encoded in pieces are those of the tokenizer."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from patch_algorithm.data.tokens.encoding import Encoder, EncodingSpec, UncuttableText
from tests.data.tokens.toys import EOS, NAMES, NEVER_CUT, SAMPLE, toy

FRAGMENTS = [
    *("the", "of the", "didn't", "x1", "été", "e\u0301te", "Москва", "中文", "한국어", "ſt", "I'LL"),
    *(" ", "  ", "   ", " " * 9, "\n", "\n\n", "\r\n", "\r", "\t", "\u00a0", "\u3000", "\n  ", " \n"),
    *("1", "12", "1234567", "3.14", ",", "。", ";\n", "))\n", "…", "\u0301", "\u0308", "\u200d", "\ufeff"),
    *("😀", "👩\u200d👩\u200d👧", "🇩🇪", EOS, "<|endof", "text|>", "<pad>", "▁", "Ġ", "<0x0A>", "\x00"),
]
TEXTS = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=60
).map("".join)


@cache
def reference(name: str) -> PreTrainedTokenizerFast:
    # transformers changes the pre-tokenizer unless it is told of the space.
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(toy(name)), add_prefix_space="space before" in name
    )


def written(name: str) -> str:
    """The tokenizer as transformers has it."""
    return reference(name).backend_tokenizer.to_str()


@cache
def encoder(name: str, piece: int, special: Literal["text", "allow"] = "text") -> Encoder:
    spec = EncodingSpec(written(name), None, None, special, "uint16")
    return Encoder(spec, piece_characters=piece, longest_piece=1 << 20)


def expected(name: str, text: str, special: str = "text") -> list[int]:
    ids = reference(name)(text, add_special_tokens=False, split_special_tokens=special == "text")
    return list(ids["input_ids"])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100)
@given(text=TEXTS, piece=st.sampled_from([1, 3, 8, 32]))
def test_ids_are_those_of_the_tokenizer_wherever_a_text_is_cut(name: str, text: str, piece: int) -> None:
    (ids,) = encoder(name, piece).encode([text])
    assert ids.tolist() == expected(name, text)


# Text without lines, and with few places that a pre-tokenizer divides.
UNBROKEN = st.lists(
    st.sampled_from(
        [
            *(
                "the",
                "of",
                "brown",
                "jumps",
                "q",
                "x",
                "THE",
                "aé",
                "_",
                "snake_case",
                "__",
                "-",
                "=",
                "/",
                "'s",
            ),
            *(
                "中",
                "文字",
                "的",
                "𠀀",
                "है",
                "है ",
                "कि",
                "नमस्ते ",
                "ไทย",
                "😀",
                "\u0301 ",
                "½",
                "二",
                "1",
                "23",
            ),
            *("- ", ". ", "> ", " - -", " ", "▁", "Ġ", EOS),
        ]
    ),
    min_size=20,
    max_size=150,
).map("".join)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(text=UNBROKEN, piece=st.sampled_from([1, 4, 16]))
def test_ids_of_text_without_lines_and_words(name: str, text: str, piece: int) -> None:
    (ids,) = encoder(name, piece).encode([text])
    assert ids.tolist() == expected(name, text)


WITHOUT_WORDS = {
    "signs": "- " * 400,
    "marks": "है " * 300,
    "chinese": "中文字符没有空格很长" * 40,
    "names": "snake_case_of_the_fox_" * 20,
}


@pytest.mark.parametrize("text", WITHOUT_WORDS.values(), ids=WITHOUT_WORDS)
@pytest.mark.parametrize("name", ["gpt2", "neox", "cl100k", "llama", "metaspace"])
def test_text_without_lines_and_words_is_cut(name: str, text: str) -> None:
    pieces = encoder(name, 16)._cutter.cut(text)  # pyright: ignore[reportPrivateUsage]
    assert len(pieces) > len(text) / 50
    assert encoder(name, 16).encode([text])[0].tolist() == expected(name, text)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
@given(text=TEXTS, piece=st.sampled_from([1, 8]))
def test_special_tokens_can_be_read_as_such(name: str, text: str, piece: int) -> None:
    (ids,) = encoder(name, piece, "allow").encode([text])
    assert ids.tolist() == expected(name, text, "allow")


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_text_is_cut_often(name: str) -> None:
    text = "".join(SAMPLE)
    pieces = encoder(name, 32)._cutter.cut(text)  # pyright: ignore[reportPrivateUsage]
    if name in NEVER_CUT:
        assert len(pieces) == 1
    elif name == "across words":
        assert 5 < len(pieces)  # at the ends of lines that no token spans
    else:
        assert len(pieces) > len(text) / 80
    assert "".join(text[piece.start + (piece.start > 0) : piece.end] for piece in pieces) == text


def test_a_token_of_several_words_is_not_cut() -> None:
    text = "of the " * 200
    ids = Tokenizer.from_str(written("across words")).encode(text, add_special_tokens=False)
    assert any("Ġ" in token[1:] for token in ids.tokens)
    assert encoder("across words", 16).encode([text])[0].tolist() == ids.ids


def test_places_that_look_well_from_nearby_only_are_not_used() -> None:
    # Pairs of " a" are merged from the start of the run, far beyond what is looked at around a place.
    model = models.BPE(
        vocab={"a": 0, "Ġ": 1, "Ġa": 2, "ĠaĠa": 3}, merges=[("Ġ", "a"), ("Ġa", "Ġa")], unk_token="a"
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(  # pyright: ignore
        add_prefix_space=False, use_regex=False
    )
    text = " a" * 400
    spec = EncodingSpec(tokenizer.to_str(), None, None, "text", "uint16")
    assert Encoder(spec, piece_characters=130).encode([text])[0].tolist() == [3] * 200


def test_marks_that_the_normalizer_moves_from_afar() -> None:
    # The last mark's class sorts it before all the others.
    text = "a" + "\u0363" * 3000 + "\u0316" + " end"
    for piece in (8, 64, 301):
        assert encoder("neox", piece).encode([text])[0].tolist() == expected("neox", text)


def test_places_within_added_tokens_and_normalized_patterns_are_not_used() -> None:
    tokenizer = Tokenizer.from_str(toy("gpt2"))
    tokenizer.normalizer = normalizers.Replace(Regex("o\\s+d"), "O")  # pyright: ignore
    tokenizer.add_tokens([AddedToken("fox jumps\nover", normalized=False), AddedToken("[x]", lstrip=True)])
    text = "the fox jumps\nover two  \n [x] lazy [x] dogs into\ndoors\n" * 20
    spec = EncodingSpec(tokenizer.to_str(), None, None, "text", "uint16")
    for piece in range(4, 40, 7):
        ids = Encoder(spec, piece_characters=piece).encode([text])[0].tolist()
        assert ids == tokenizer.encode(text).ids, piece


def test_end_of_text_in_a_text_is_text_unless_allowed() -> None:
    end = Tokenizer.from_str(written("gpt2")).token_to_id(EOS)
    text = f"one {EOS} two"
    assert end not in encoder("gpt2", 64).encode([text])[0]
    assert end in encoder("gpt2", 64, "allow").encode([text])[0]


@pytest.mark.parametrize("piece", [4, 1000])
def test_texts_of_a_batch_keep_their_order_and_ends(piece: int) -> None:
    texts = ["", "a", "the quick brown fox\njumps over " * 5, "", "12\n34"]
    spec = EncodingSpec(written("llama"), 7, 5, "text", "uint32")
    got = Encoder(spec, piece_characters=piece).encode(texts)
    assert [ids.tolist() for ids in got] == [[5, *expected("llama", text), 7] for text in texts]
    assert {ids.dtype for ids in got} == {np.dtype("uint32")}


def test_more_text_than_one_batch_holds() -> None:
    text = "".join(SAMPLE) * 40
    texts = [text, "x", text * 20, "y"]
    got = Encoder(EncodingSpec(written("llama"), None, None, "text", "uint16")).encode(texts)
    assert [ids.tolist() for ids in got] == [expected("llama", text) for text in texts]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_very_long_word_is_refused_before_anything_is_encoded(name: str) -> None:
    spec = EncodingSpec(written(name), None, None, "text", "uint16")
    small = Encoder(spec, piece_characters=100, longest_piece=1000)
    word = "1" * 1500
    with pytest.raises(UncuttableText, match="no place in 1,000") as caught:
        small.encode(["short", "the fox\n" * 40 + word, word])
    assert caught.value.index == 1
    assert "1,820 characters" in str(caught.value)
    assert small.encode([word[:1000]])[0].tolist() == expected(name, word[:1000])


def test_a_tokenizer_that_cannot_be_cut_refuses_only_what_is_too_long() -> None:
    spec = EncodingSpec(written("unigram of the whole"), None, None, "text", "uint16")
    small = Encoder(spec, piece_characters=100, longest_piece=1000)
    text = "the quick brown fox\n" * 60
    assert small.encode([text[:1000]])[0].tolist() == expected("unigram of the whole", text[:1000])
    with pytest.raises(UncuttableText):
        small.encode([text])


def test_truncation_and_padding_of_a_tokenizer_are_not_kept() -> None:
    tokenizer = Tokenizer.from_str(written("gpt2"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    spec = EncodingSpec(tokenizer.to_str(), None, None, "text", "uint16")
    texts = ["the quick brown fox jumps", "a"]
    assert [ids.tolist() for ids in Encoder(spec).encode(texts)] == [expected("gpt2", t) for t in texts]


MEMORY_OF_ENCODING = """
import pathlib, resource, sys
from patch_algorithm.data.tokens.encoding import Encoder, EncodingSpec

def peak():
    # On Linux ru_maxrss outlives exec: it would be that of the process that started this one.
    if (status := pathlib.Path("/proc/self/status")).exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

encoder = Encoder(EncodingSpec(pathlib.Path(sys.argv[1]).read_text(), 0, None, "text", "uint16"))
text = "the quick brown fox jumps over the lazy dog\\n" * (4_000_000 // 44)
before = peak()
assert len(encoder.encode([text])[0]) > len(text) // 10
print((peak() - before) / len(text))
"""


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_memory_of_a_long_document_is_a_few_times_its_length(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(written(name))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_ENCODING, str(tmp_path / "tokenizer.json")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )
    assert 0 < float(done.stdout) < 30  # bytes a character; some 80 and more when encoded at once
