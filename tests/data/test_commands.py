"""``patch-level data convert`` as a shell sees it."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from patch_algorithm.cli import app
from patch_algorithm.data.conversion.estimation import estimate
from tests.data.support import END_OF_TEXT, documents, files, lines, options, stream_tokens


def command(*args: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, args)])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(documents(100)))
    return path


def test_convert_reports_what_came_out(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    asked = ["--source", source, "--tokenizer", tokenizer, "--out", out, "--row-tokens", 64, "--workers", 0]
    result = command("convert", *asked, "--val-fraction", 0.2, "--val-row-tokens", 16, "--report", report)
    assert result.exit_code == 0, result.output
    assert "Wikipedia (en)  train" in result.output
    assert f"{out}: finished in" in result.output
    for stream in json.loads((out / "dataset.json").read_text())["streams"]:
        line = next(line for line in result.output.splitlines() if line.startswith(f"{stream['path']} "))
        numbers = [int(word.replace(",", "")) for word in line.split()[1:]]
        names = ("rows", "row_tokens", "shards", "tokens", "tokens_left_out")
        assert numbers == [stream[name] for name in names]
        assert stream["tokens_left_out"] > 0
    told = json.loads(report.read_text())
    written = json.loads((out / "dataset.json").read_text())
    assert {name: told[name] for name in written} == written
    assert told["run"]["documents"] == 100
    assert told["run"]["seconds"] > 0
    assert [stream["row_tokens"] for stream in written["streams"]] == [64, 16]
    again = command("convert", *asked)
    assert again.exit_code == 2
    assert "already holds a finished dataset" in again.output


def test_a_pattern_that_the_shell_expands(tokenizer: Path, tmp_path: Path) -> None:
    sources = [tmp_path / f"{index}.jsonl" for index in range(3)]
    for index, path in enumerate(sources):
        path.write_bytes(lines(documents(30, seed=index)))
    out = tmp_path / "out"
    asked = ["--tokenizer", tokenizer, "--out", out, "--workers", 0, "--row-tokens", 64]
    result = command("convert", "--source", *sources, *asked)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "dataset.json").read_text())["sources"] == list(map(str, sources))


def test_every_option_reaches_the_conversion(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with source.open("ab") as file:
        file.write(b"{\n" + lines([{"body": "b", "text": END_OF_TEXT}]) * 2)
    asked = ["--source", source, "--tokenizer", tokenizer, "--out", out, "--row-tokens", 16, "--workers", 0]
    more = ["--compression", "zstd", "--on-error", "skip", "--special-tokens", "allow", "--no-eos"]
    result = command("convert", *asked, *more, "--split-by-component", "--work-dir", tmp_path / "work")
    assert result.exit_code == 0, result.output
    info = json.loads((out / "dataset.json").read_text())
    assert info["compression"] == "zstd"
    assert info["skipped"] == {"not JSON": 1}
    assert info["tokenizer"]["special_tokens"] == "allow"
    assert not info["tokenizer"]["adds_eos"]
    assert info["split_by_component"]
    assert 0 in stream_tokens(out, "unlabelled/train")
    result = command("convert", *asked, "--overwrite", "--text-field", "body", "--on-error", "skip")
    assert result.exit_code == 2
    assert "do not fill one row of 16" in result.output


def test_a_dry_run_estimates_and_writes_nothing(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pile"
    folder.mkdir()
    for index in range(40):
        (folder / f"{index:02}.jsonl").write_bytes(lines(documents(30, seed=index)))
    before = files(tmp_path)
    asked = ["--source", folder, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--row-tokens", 64]
    result = command("convert", *asked, "--dry-run")
    assert result.exit_code == 0, result.output
    assert files(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pile"]
    assert "Nothing was written." in result.output
    total = next(line for line in result.output.splitlines() if line.startswith("total"))
    estimated = int(total.split()[1].replace(",", ""))
    assert 1100 < estimated < 1300, "of 1,200 documents"
    result = command("convert", *asked, "--workers", 0)
    (train,) = json.loads((tmp_path / "out" / "dataset.json").read_text())["streams"]
    assert train["rows"] > 100


def test_bad_input_is_one_message(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with source.open("ab") as file:
        file.write(b"[1]\n")
    for asked, words in (
        (["--source", source, "--tokenizer", tokenizer], "a.jsonl, line 101: not an object"),
        (["--source", source, "--tokenizer", tokenizer, "--dry-run"], "a.jsonl, line 101: not an object"),
        (["--source", "none.jsonl", "--tokenizer", tokenizer], "there is no such file or folder"),
        (["--source", source, "--tokenizer", tmp_path / "none"], "there is no tokenizer folder"),
        (["--source", source, "--tokenizer", tokenizer, "--val-fraction", 2], "--val-fraction is 2.0"),
    ):
        result = command("convert", *asked, "--out", out, "--row-tokens", 16, "--workers", 0)
        assert result.exit_code == 2
        assert words in result.output
        assert "Traceback" not in result.output
        assert result.output.count("patch-level data convert:") == 1
        assert not out.exists()


@pytest.mark.slow
def test_the_builtin_corpus_is_a_source(tokenizer: Path, tmp_path: Path) -> None:
    asked = ["--tokenizer", tokenizer, "--out", tmp_path / "out", "--row-tokens", 64, "--workers", 0]
    result = command("convert", "--source", "builtin", "--builtin-megabytes", 0.3, *asked)
    assert result.exit_code == 0, result.output
    counts = json.loads((tmp_path / "out" / "dataset.json").read_text())["components"]["unlabelled"]
    assert 300_000 <= counts["train"]["bytes"] < 1_000_000


@pytest.mark.parametrize("megabytes", ["inf", "nan", "0"])
def test_how_much_builtin_text_has_to_be_a_number(megabytes: str, tokenizer: Path, tmp_path: Path) -> None:
    asked = ["--source", "builtin", "--builtin-megabytes", megabytes, "--tokenizer", tokenizer]
    result = command("convert", *asked, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"--builtin-megabytes is {float(megabytes)}; expected a number above 0" in result.output


def test_info_and_cat(converted: Path) -> None:
    result = command("info", converted)
    assert result.exit_code == 0, result.output
    assert "uint16" in result.output
    result = command("cat", converted, "--row", 0)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(documents(seed=0)[0]["text"][:20])
    assert command("cat", converted, "--row", 10**6).exit_code == 2
    assert command("info", converted / "none").exit_code == 2


def test_a_report_that_could_not_be_written(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    before = files(tmp_path)
    asked = ["--source", source, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--row-tokens", 64]
    for report in (tmp_path / "none" / "report.json", tmp_path):
        result = command("convert", *asked, "--workers", 0, "--report", report)
        assert result.exit_code == 2
        assert f"--report {report}: expected a file in an existing folder." in result.output
    assert files(tmp_path) == before


def test_a_dry_run_writes_no_report(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    asked = ["--source", source, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--report", report]
    result = command("convert", *asked, "--dry-run")
    assert result.exit_code == 2
    assert "--report has no effect with --dry-run" in result.output
    assert not report.exists()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_dry_run_knows_how_much_of_a_file_it_has_sampled(
    name: str, tokenizer: Path, tmp_path: Path
) -> None:
    found = documents(12_000)
    text = json.dumps(found).encode() if name == "a.json" else lines(found)
    assert len(text) > 7 << 20
    path = tmp_path / name
    path.write_bytes(gzip.compress(text, 1) if name.endswith(".gz") else text)
    result = command(
        "convert", "--source", path, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--dry-run"
    )
    assert result.exit_code == 0, result.output
    total = next(line.split() for line in result.output.splitlines() if line.startswith("total"))
    assert int(total[1].replace(",", "")) == pytest.approx(len(found), rel=0.05)


def test_a_dry_run_divides_processor_time_by_the_workers(
    source: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eight seconds of all threads together, in however little time.
    monkeypatch.setattr(time, "process_time", iter([10.0, 18.0]).__next__)
    found = estimate(options([source], tokenizer, tmp_path / "out", workers=4))
    assert found.seconds == 2.0
