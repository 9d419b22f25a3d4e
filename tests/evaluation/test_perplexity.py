"""Perplexity is what an independent computation gives, token by token and in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import LlamaForCausalLM

from patch_algorithm.evaluation.documents import Documents
from patch_algorithm.evaluation.measures import Measure, measure_components, measure_documents
from patch_algorithm.evaluation.models import load
from patch_algorithm.evaluation.scoring import windows
from tests.evaluation.conftest import CONTEXT, TEXTS
from tests.support import VOCABULARY

EOS = 94
IDS = [[int(word[1:]) for word in text.split()] for text in TEXTS]


def oracle(model: LlamaForCausalLM, ids: list[int], stride: int) -> dict[int, float]:
    """Nats by position: every token by a forward pass of its own over what its window holds before it."""
    model, nats = model.double(), {}
    for position in range(1, len(ids)):
        # The first window that holds the token; its start advances by the stride.
        start = max(0, math.ceil((position + 1 - CONTEXT) / stride)) * stride
        if start == position:
            continue
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[start:position]])).logits[0, -1]
        nats[position] = -logits.log_softmax(-1)[ids[position]].item()
    return nats


def expected(export: Path, stride: int, joined: bool) -> tuple[float, int]:
    model = LlamaForCausalLM.from_pretrained(export).eval()
    sequences = [[EOS, *ids] for ids in IDS]
    if joined:
        sequences = [[token for ids in sequences for token in ids]]
    found = [
        nats
        for ids in sequences
        for position, nats in oracle(model, ids, stride).items()
        if ids[position] != EOS
    ]
    return sum(found) / len(found), len(found)


def measure(export: Path, stride: int = CONTEXT, batch: int = 4) -> tuple[Measure, Measure]:
    documents = Documents("here", tuple(TEXTS))
    return measure_documents(load(str(export)), documents, context=CONTEXT, stride=stride, batch=batch)


@pytest.mark.parametrize("stride", [CONTEXT, 5, 1])
def test_loss_agrees_with_an_independent_computation(stride: int, export: Path) -> None:
    for found, joined in zip(measure(export, stride), (True, False), strict=True):
        loss, scored = expected(export, stride, joined)
        assert sum(unit.scored for unit in found.units) == scored
        assert found.loss == pytest.approx(loss, rel=1e-5)
        assert found.token_perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_the_stride_matters_and_the_batch_does_not(export: Path) -> None:
    rows = measure(export)[0]
    assert abs(rows.loss - measure(export, 5)[0].loss) > 1e-3
    assert rows.loss == pytest.approx(measure(export, batch=1)[0].loss, rel=1e-6)


def test_words_and_bytes(export: Path) -> None:
    for found in measure(export, 1):
        nats = sum(unit.nats for unit in found.units)
        words = sum(len(ids) for ids in IDS)  # each word is a token, and all are scored
        assert sum(unit.scored for unit in found.units) == words
        assert found.word_perplexity == pytest.approx(math.exp(nats / words))
        assert found.bits_per_byte == pytest.approx(nats / math.log(2) / sum(map(len, TEXTS)))


def test_a_tokenizer_that_adds_tokens_of_its_own_does_not_double_them(export: Path) -> None:
    subject, documents = load(str(export)), Documents("here", tuple(TEXTS))
    plain = measure_documents(subject, documents, context=CONTEXT, stride=CONTEXT)
    subject.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="<eos> $A <eos>", special_tokens=[("<eos>", EOS)]
    )
    assert subject.tokenizer.encode("w1") == [EOS, 1, EOS]
    assert measure_documents(subject, documents, context=CONTEXT, stride=CONTEXT) == plain


@pytest.mark.parametrize("length", range(1, 20))
@pytest.mark.parametrize("stride", range(1, 6))
def test_windows_score_every_token_once_and_drop_no_tail(length: int, stride: int) -> None:
    scored = [at for one in windows(length, 5, stride) for at in range(one.first, one.end)]
    unscored = range(0, length, 5) if stride == 5 else range(1)
    assert scored == [at for at in range(length) if at not in unscored]
    assert all(one.start < one.first < one.end <= one.start + 5 for one in windows(length, 5, stride))


def test_the_rows_of_a_component(export: Path, corpus: Path, tmp_path: Path) -> None:
    import dataclasses

    from streaming import MDSWriter

    from patch_algorithm.data.dataset.description import ComponentCounts, DatasetInfo, StreamInfo

    rows = [
        torch.randint(VOCABULARY - 2, (16,), generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]
    with MDSWriter(out=str(tmp_path / "val/x"), columns={"tokens": "ndarray:uint16:16"}) as out:
        for row in rows:
            out.write({"tokens": row.numpy().astype("uint16")})
    written = DatasetInfo.read(corpus / "mds")
    stream = StreamInfo("val/x", "X", "val", 16, 3, 1, 48, 2)
    counts = {"X": {"val": ComponentCounts(4, 200, 50)}}
    info = dataclasses.replace(written, streams=(stream,), components=counts, split_by_component=True)
    info.write(tmp_path)
    (found,) = measure_components(load(str(export)), str(tmp_path), "val", context=CONTEXT, stride=CONTEXT)
    model = LlamaForCausalLM.from_pretrained(export).eval()
    nats = [n for row in rows for n in oracle(model, row.tolist(), CONTEXT).values()]
    assert (found.name, len(found.units), len(nats)) == ("X", 3, 42)
    assert found.loss == pytest.approx(sum(nats) / 42, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2) * 50 / 200)
    with pytest.raises(ValueError, match="has no rows in a split 'test'; it has val"):
        measure_components(load(str(export)), str(tmp_path), "test", context=CONTEXT, stride=CONTEXT)
    other = dataclasses.replace(info, tokenizer=dataclasses.replace(info.tokenizer, fingerprint="0" * 64))
    other.write(tmp_path)
    with pytest.raises(ValueError, match="written with another tokenizer"):
        measure_components(load(str(export)), str(tmp_path), "val", context=CONTEXT, stride=CONTEXT)
