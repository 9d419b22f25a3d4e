"""The library that makes the ids changes no byte of a dataset, and a difference is found and recorded."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from patch_algorithm.data.conversion.records import ConversionError
from patch_algorithm.data.dataset.description import DatasetInfo
from patch_algorithm.data.dataset.inspection import inspect_dataset
from tests.data.support import documents, files, lines, partial, run
from tests.data.tokens.stand import Stand, install


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> type[Stand]:
    return install(monkeypatch)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "a.jsonl"
    path.write_bytes(lines(documents(400, seed=3)))
    return path


@pytest.fixture(scope="module")
def plain(source: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("plain") / "out"
    report = run([source], tokenizer, out, encoder="tokenizers")
    assert str(report.info.encoder).startswith("encoded by tokenizers 0.")
    return rows(out)


def rows(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(out).items() if name != "dataset.json"}


def checked() -> list[str]:
    return [d["text"] for d in documents(400, seed=3) if zlib.crc32(d["text"].encode()) % 100 == 0]


def test_the_engine_is_recorded_and_changes_nothing(
    source: Path, plain: dict[str, bytes], tokenizer: Path, tmp_path: Path, stand: type[Stand]
) -> None:
    report = run([source], tokenizer, tmp_path / "out", encoder="fast")
    assert rows(tmp_path / "out") == plain
    encoder = DatasetInfo.read(tmp_path / "out").encoder
    assert encoder == report.info.encoder
    assert encoder is not None
    assert (encoder.name, encoder.differed) == ("fastokens 0.0", False)
    # Documents that mention the end-of-text token are checked, too.
    assert len(checked()) < encoder.documents < 30
    assert "encoded by fastokens 0.0, checked on " in str(report)
    assert "fastokens 0.0, checked on" in str(inspect_dataset(tmp_path / "out"))


def test_after_a_difference_the_unit_is_encoded_again(
    source: Path, plain: dict[str, bytes], tokenizer: Path, tmp_path: Path, stand: type[Stand]
) -> None:
    # The document that is checked, and one of its unit that is not.
    culprit = checked()[-1]
    texts = [d["text"] for d in documents(400, seed=3)]
    before = texts[texts.index(culprit) - 1]
    stand.fault = staticmethod(lambda text: text in (culprit, before))
    report = run([source], tokenizer, tmp_path / "out", encoder="fast")
    assert rows(tmp_path / "out") == plain
    assert report.info.encoder is not None
    assert report.info.encoder.differed
    assert "until a document had other ids, then by tokenizers" in str(report)


def test_one_engine_continues_the_work_of_the_other(
    source: Path, plain: dict[str, bytes], tokenizer: Path, tmp_path: Path, stand: type[Stand]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(source.read_bytes() + b"{\n")
    for first, second in (("fast", "tokenizers"), ("tokenizers", "fast")):
        out = tmp_path / first / "out"
        out.parent.mkdir()
        broken = out.parent / "a.jsonl"
        broken.write_bytes(source.read_bytes() + b"{\n")
        with pytest.raises(ConversionError, match="not JSON"):
            run([broken], tokenizer, out, encoder=first)
        assert partial(out).exists()
        broken.write_bytes(source.read_bytes())
        report = run([broken], tokenizer, out, encoder=second)
        assert report.encoded.documents < 400
        tokens = {k: v for k, v in rows(out).items() if k.endswith(".mds")}
        assert sorted(tokens.values()) == sorted(v for k, v in plain.items() if k.endswith(".mds"))


def test_little_text_is_not_worth_the_probes(
    source: Path, tokenizer: Path, tmp_path: Path, stand: type[Stand]
) -> None:
    report = run([source], tokenizer, tmp_path / "out")
    assert report.info.encoder is not None
    assert report.info.encoder.name.startswith("tokenizers ")


def test_what_an_earlier_version_wrote_has_no_encoder(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    run([source], tokenizer, tmp_path / "out")
    path = tmp_path / "out" / "dataset.json"
    content = json.loads(path.read_text())
    del content["encoder"]
    path.write_text(json.dumps(content))
    assert DatasetInfo.read(tmp_path / "out").encoder is None
