"""A second engine is used only where it agrees with `tokenizers`, and is watched while it works."""

from __future__ import annotations

import sys
import unicodedata
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from patch_algorithm.data.tokens.encoding import Encoder, EncodingSpec
from patch_algorithm.data.tokens.engine import CheckedEncoder, EnginesDiffer, choose_engine, make_encoder
from patch_algorithm.data.tokens.probes import probes
from tests.data.tokens.stand import Stand, install
from tests.data.tokens.test_exact import TEXTS, expected, written
from tests.data.tokens.toys import EOS, SAMPLE


def spec(name: str = "gpt2", **changes: Any) -> EncodingSpec:
    return EncodingSpec(
        written(name), **({"eos_id": None, "bos_id": None} | changes), special_tokens="text", dtype="uint16"
    )


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> type[Stand]:
    return install(monkeypatch)


def test_an_engine_that_agrees_on_all_probes_is_used(stand: type[Stand]) -> None:
    chosen = choose_engine(spec())
    assert (chosen.spec.engine, chosen.version, chosen.reason) == ("fast", "fastokens 0.0", None)
    assert chosen.probes == len(probes(written("gpt2")))
    assert isinstance(make_encoder(chosen.spec), CheckedEncoder)
    plain = choose_engine(spec(), "tokenizers")
    assert (plain.spec.engine, plain.probes) == ("tokenizers", 0)
    assert plain.version.startswith("tokenizers 0.")
    assert isinstance(make_encoder(plain.spec), Encoder)


def test_one_that_differs_in_a_probe_is_not(stand: type[Stand]) -> None:
    stand.fault = staticmethod(lambda text: text == "a<0x0A>b")
    chosen = choose_engine(spec())
    assert chosen.spec.engine == "tokenizers"
    assert chosen.reason == "fastokens gives other ids than tokenizers for 'a<0x0A>b'."
    with pytest.raises(ValueError, match=r"--encoder fast: fastokens gives other ids .* Use --encoder auto"):
        choose_engine(spec(), "fast")


def test_one_that_is_not_there_or_cannot_read_is_not(
    stand: type[Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(text: str) -> Stand:
        raise RuntimeError("unsupported model: Unigram")

    monkeypatch.setattr(stand, "from_json_str", unread)
    assert choose_engine(spec()).reason == (
        "fastokens cannot load this tokenizer (unsupported model: Unigram)."
    )
    monkeypatch.setitem(sys.modules, "fastokens", None)
    assert "pip install 'patch-algorithm[fast]'" in (choose_engine(spec()).reason or "")
    with pytest.raises(ValueError, match="--encoder fast: fastokens is not installed"):
        choose_engine(spec(), "fast")


def test_one_document_in_a_hundred_is_encoded_by_both(stand: type[Stand]) -> None:
    encoder = CheckedEncoder(spec())
    texts = [f"{SAMPLE[0]} {number}" for number in range(1000)]
    encoder.encode(texts)
    checked = [index for index, text in enumerate(texts) if zlib.crc32(text.encode()) % 100 == 0]
    assert encoder.checked == len(checked)
    assert 3 < len(checked) < 30
    stand.fault = staticmethod(lambda text: text == texts[checked[2]])
    with pytest.raises(EnginesDiffer) as raised:
        encoder.encode(texts)
    assert raised.value.index == checked[2]


def test_every_document_that_mentions_an_added_token_is_encoded_by_both(stand: type[Stand]) -> None:
    encoder = CheckedEncoder(spec("neox"))
    texts = ["two  spaces", f"an end {EOS} within", "no such thing"]
    assert not any(zlib.crc32(text.encode()) % 100 == 0 for text in texts)
    encoder.encode(texts)
    assert encoder.checked == 1, "runs of spaces are added tokens of NeoX, and in too many documents"
    stand.fault = staticmethod(lambda text: EOS in text)
    with pytest.raises(EnginesDiffer):
        encoder.encode(texts)


def test_ends_and_types_are_those_of_the_plain_encoder(stand: type[Stand]) -> None:
    texts = ["", "a", SAMPLE[1] * 50]
    for changes in ({"eos_id": 1}, {"eos_id": 1, "bos_id": 2}, {}):
        own = spec(**changes)
        for ids, others in zip(Encoder(own).encode(texts), CheckedEncoder(own).encode(texts), strict=True):
            assert ids.dtype == others.dtype == np.uint16
            assert ids.tolist() == others.tolist()


def test_probes_hold_what_an_engine_may_get_wrong() -> None:
    found = probes(written("neox"))
    assert found == probes(written("neox"))
    assert 5000 < len(found) < 20000
    assert {f"\n<0x{byte:02X}>" for byte in range(256)} <= set(found)
    assert {f"a{EOS}b", EOS[1:], "a        b", "\n" * 33} <= set(found)
    characters = set("".join(found))
    assigned = {chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")}
    assert assigned <= characters
    assert max(map(len, found)) < 1000


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "unigram"])
def test_fastokens_is_refused_or_right(name: str) -> None:
    pytest.importorskip("fastokens")
    chosen = choose_engine(spec(name))
    assert (chosen.spec.engine == "fast") == (name in ("gpt2", "neox")), chosen.reason
    encoder = make_encoder(chosen.spec)

    @settings(max_examples=60)
    @given(TEXTS)
    def is_right(text: str) -> None:
        assert encoder.encode([text])[0].tolist() == expected(name, text)

    is_right()
