"""The built-in corpus, made of a few packages of the standard library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from patch_algorithm.data.conversion.documents import held_out
from patch_algorithm.data.corpus.gather import gather, module_files
from patch_algorithm.data.corpus.prepare import BuiltinCorpus, BuiltinCorpusTokenizer, prepare_builtin_corpus
from patch_algorithm.data.corpus.tokenizer import END_OF_TEXT
from patch_algorithm.data.dataset.description import DatasetInfo
from patch_algorithm.data.dataset.integrity import check_shards
from patch_algorithm.preflight import prepare, read_config

PACKAGES = ("asyncio", "email", "json", "logging")


def request(folder: Path, **changes: Any) -> BuiltinCorpus:
    values: dict[str, Any] = {"row_tokens": 64, "val_row_tokens": 16, "vocab_size": 320, "megabytes": 0.2}
    values |= {"val_share": 0.3, "packages": PACKAGES}
    return BuiltinCorpus(folder=str(folder), **(values | changes))


def split_documents(documents: list[str], val_share: float) -> tuple[list[str], list[str]]:
    val = [text for text in documents if held_out(text.encode(), val_share)]
    return [text for text in documents if text not in val], val


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_builtin_corpus(request(tmp_path_factory.mktemp("prepared") / "corpus"))


@pytest.fixture(scope="module")
def yaml_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("yaml") / "run.yaml"
    corpus = request(Path("unset"))
    asked = {**vars(corpus), "packages": list(PACKAGES)}
    path.write_text(OmegaConf.to_yaml({"variables": {"builtin_corpus": asked}}))
    return path


def command(yaml_file: Path, folder: Path, **env: str) -> subprocess.Popen[str]:
    code = "import sys; from patch_algorithm.cli import app; sys.argv[0] = 'patch-level'; app()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "prepare", str(yaml_file), f"variables.builtin_corpus.folder={folder}"],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_what_it_asks_for_comes_out(prepared: Path) -> None:
    record = json.loads((prepared / "prepared.json").read_text())
    counts = record["counts"]
    assert counts["vocabulary"] == 320
    assert counts["train_tokens"] == 64 * counts["train_rows"] > 0
    assert counts["val_tokens"] == 16 * counts["val_rows"] > 0
    assert sorted(p.name for p in prepared.parent.iterdir()) == ["corpus", "corpus.lock"]


def test_stock_llm_foundry_reads_back_the_text(prepared: Path) -> None:
    from llmfoundry.data.text_data import StreamingTextDataset

    tokenizer = BuiltinCorpusTokenizer(str(prepared), model_max_length=64)
    train, val = split_documents(gather(PACKAGES, 0.2), 0.3)
    assert train
    assert val
    for split, documents, row in (("train", train, 64), ("val", val, 16)):
        rows = StreamingTextDataset(
            tokenizer, max_seq_len=row, local=str(prepared), split=split, shuffle=False, batch_size=1
        )
        tokens = np.concatenate([rows[i].numpy() for i in range(len(rows))])
        whole = END_OF_TEXT.join([*documents, ""])
        read = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        # Less than a row may be missing at the end, and a character may be cut there.
        assert whole.startswith(read.rstrip("\ufffd"))
        assert len(tokenizer(whole)["input_ids"]) - len(tokens) < row


def test_three_processes_at_once_make_it_once_and_all_the_same_bytes(
    prepared: Path, yaml_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    waiting = command(yaml_file, folder, LOCAL_RANK="1", PYTHONHASHSEED="1")
    makers = [command(yaml_file, folder, PYTHONHASHSEED=seed) for seed in ("2", "3")]
    outputs = [process.communicate(timeout=300)[0] for process in (waiting, *makers)]
    assert [p.returncode for p in (waiting, *makers)] == [0, 0, 0], outputs
    assert "gathering" not in outputs[0]
    assert sorted(("made in" in text, "reusing" in text) for text in outputs[1:]) == [
        (False, True),
        (True, False),
    ]
    assert files(folder) == files(prepared)


def test_a_second_run_reuses_it(prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    with caplog.at_level("INFO"):
        assert prepare_builtin_corpus(request(prepared)) == prepared
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before
    assert "reusing" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 300}, "vocab_size is 320 there and 300 here"),
        ({"row_tokens": 32}, "row_tokens is 64 there and 32 here"),
        ({"packages": ("json",)}, "packages is "),
    ],
)
def test_another_request_does_not_overwrite_it(prepared: Path, changes: dict[str, Any], words: str) -> None:
    before = files(prepared)
    with pytest.raises(ValueError, match=words) as caught:
        prepare_builtin_corpus(request(prepared, **changes))
    assert "Name another folder, or delete" in str(caught.value)
    assert files(prepared) == before


def test_another_version_of_a_package_does_not_overwrite_it(prepared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "corpus"))
    record = json.loads((folder / "prepared.json").read_text())
    record["fingerprint"]["versions"]["json"] = "2.6"
    (folder / "prepared.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"versions\.json is '2\.6' there"):
        prepare_builtin_corpus(request(folder))


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("thesis")
    with pytest.raises(ValueError, match="is not a prepared corpus"):
        prepare_builtin_corpus(request(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "thesis"


def test_a_lost_part_is_told(prepared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "corpus"))
    shutil.rmtree(folder / "val")
    with pytest.raises(ValueError, match="lacks val/index"):
        prepare_builtin_corpus(request(folder))


def test_a_failure_leaves_nothing_half_made(tmp_path: Path) -> None:
    corpus = request(tmp_path / "corpus", val_share=1e-9)
    with pytest.raises(ValueError, match=r"do not fill one row of the val split.*val_share"):
        prepare_builtin_corpus(corpus)
    assert [p.name for p in tmp_path.iterdir() if p.name != "tmp"] == ["corpus.lock"]


def test_what_a_killed_process_left_is_cleared_away(prepared: Path, tmp_path: Path) -> None:
    half = tmp_path / ".corpus.partial" / "train"
    half.mkdir(parents=True)
    (half / "shard.00000.mds").write_bytes(b"half")
    folder = prepare_builtin_corpus(request(tmp_path / "corpus"))
    assert not half.parent.exists()
    assert files(folder) == files(prepared)


def test_documents_are_deduplicated_and_sources_follow_docstrings() -> None:
    docstrings = gather(["json"], 0.005)
    assert "json.JSONDecodeError" not in docstrings[0].splitlines()[0]
    twice = gather(["json", "email"], 0.2)
    assert len(set(twice)) == len(twice)
    sources = {path.read_text() for path in module_files(["json", "email"])}
    kinds = [text in sources for text in twice]
    assert True in kinds
    assert kinds == sorted(kinds), "sources come after docstrings"
    size = sum(len(text.encode()) for text in twice)
    assert size - len(twice[-1].encode()) < 200_000 <= size


def test_more_text_than_there_is() -> None:
    with pytest.raises(ValueError, match=r"megabytes: 50 asked for, but the packages json hold only 0\.1"):
        gather(["json"], 50)


def test_hold_out_goes_by_the_document_alone() -> None:
    documents = [f"document {i}" for i in range(500)]
    train, val = split_documents(documents, 0.2)
    assert set(train) | set(val) == set(documents)
    assert not set(train) & set(val)
    assert 50 < len(val) < 150
    assert split_documents(documents[::-1][:300], 0.2)[1] == [d for d in documents[:199:-1] if d in val]


def test_it_is_a_converted_dataset(prepared: Path) -> None:
    info = DatasetInfo.read(prepared)
    documents = gather(PACKAGES, 0.2)
    counts = info.components["unlabelled"]
    assert counts["train"].documents + counts["val"].documents == len(documents)
    assert counts["train"].bytes + counts["val"].bytes == sum(len(text.encode()) for text in documents)
    assert (info.dtype, info.row_tokens) == ("uint16", {"train": 64, "val": 16})
    assert (info.tokenizer.name, info.sources) == ("builtin_corpus", ("builtin",))
    for stream in info.streams:
        assert stream.tokens + stream.tokens_left_out == counts[stream.split].tokens
        assert stream.tokens_left_out < stream.row_tokens
    assert not check_shards(prepared)


def test_padding_is_a_token_of_its_own(prepared: Path) -> None:
    tokenizer = BuiltinCorpusTokenizer(str(prepared))
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert type(tokenizer).__name__ == "PreTrainedTokenizerFast"


def test_stock_llm_foundry_without_preparation_names_the_command(prepared: Path, tmp_path: Path) -> None:
    from llmfoundry.utils.builders import build_tokenizer

    with pytest.raises(ValueError, match="patch-level prepare YAML"):
        build_tokenizer("builtin_corpus", {"folder": str(tmp_path / "none"), "model_max_length": 8})
    tokenizer = build_tokenizer("builtin_corpus", {"folder": str(prepared), "model_max_length": 8})
    assert tokenizer.model_max_length == 8
    assert tokenizer.decode(tokenizer("def f(x): ...")["input_ids"]) == "def f(x): ..."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row_tokens": 0}, "row_tokens is 0"),
        ({"row_tokens": True}, "row_tokens is True"),
        ({"val_row_tokens": 16.0}, r"val_row_tokens is 16\.0"),
        ({"vocab_size": 257}, "vocab_size is 257; expected a whole number from 258 to 65536"),
        ({"vocab_size": 65537}, "vocab_size is 65537"),
        ({"megabytes": 0}, "megabytes is 0"),
        ({"megabytes": float("nan")}, "megabytes is nan"),
        ({"val_share": 1}, "val_share is 1"),
        ({"packages": ()}, "packages is "),
        ({"packages": ("no_such_package",)}, "'no_such_package' is not an installed top-level package"),
        ({"packages": ("os.path",)}, r"'os\.path' is not an installed top-level package"),
    ],
)
def test_bad_values(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(request(tmp_path / "corpus"), **changes)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("here", "expected a mapping"),
        ({"folder": "x", "rows": 3}, "unknown keys rows; known are folder, megabytes"),
        ({"folder": "x", "row_tokens": 8}, "lacks val_row_tokens"),
        ({"folder": "", "row_tokens": 8, "val_row_tokens": 8}, "folder is ''"),
        ({"folder": "${nowhere}", "row_tokens": 8, "val_row_tokens": 8}, "cannot be resolved"),
    ],
)
def test_bad_requests(asked: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prepare(OmegaConf.create({"variables": {"builtin_corpus": asked}}))


@pytest.mark.parametrize("cfg", [{}, {"variables": None}, {"variables": {"builtin_corpus": None}}])
def test_nothing_asked_for(cfg: dict[str, Any]) -> None:
    assert prepare(OmegaConf.create(cfg)) is None


def test_overrides_reach_the_preparation(yaml_file: Path, tmp_path: Path) -> None:
    cfg = read_config(str(yaml_file), ["variables.builtin_corpus.row_tokens=0"])
    with pytest.raises(ValueError, match="row_tokens is 0"):
        prepare(cfg)


@pytest.mark.parametrize(
    ("content", "overrides", "words"),
    [
        ("a: 1", ["max_duration"], "the override 'max_duration' is not of the form key=value"),
        ("- a", [], "holds a list"),
        ("a: [", [], "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, overrides: list[str], words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_config(str(path), overrides)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no configuration file"):
        read_config(str(tmp_path / "run.yaml"))
