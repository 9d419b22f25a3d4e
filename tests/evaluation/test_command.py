"""``patch-level eval`` as a shell sees it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner, Result

from patch_algorithm.cli import app
from patch_algorithm.evaluation.comparison import compare
from patch_algorithm.evaluation.paper import paper_row
from tests.export.runs import checkpoint_of, export_of


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def result(*arguments: object) -> dict:
    done = evaluate(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refused(done: Result, words: str) -> None:
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("patch-level eval: ")
    assert "Traceback" not in done.output
    assert words in done.stderr


def test_a_checkpoint_and_its_export_are_the_same(trained: Path, texts: Path) -> None:
    checkpoint = result(checkpoint_of(trained), "--data", texts)
    exported = result(export_of(trained), "--data", texts)
    for one, other in zip(checkpoint["measures"], exported["measures"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["scored_tokens"] == other["scored_tokens"]
    assert (checkpoint["model"]["in_patch_stage"], exported["model"]["in_patch_stage"]) == (False, None)
    assert not any("says little" in note for note in checkpoint["notes"])


@pytest.mark.parametrize("name", ["mpt", "gpt2", "olmoe"])
@pytest.mark.filterwarnings("ignore:Propagating key_padding_mask")  # from the export's own code
def test_other_families(name: str, run_of: Callable[..., Path], texts: Path) -> None:
    run = run_of(name)
    checkpoint = result(checkpoint_of(run), "--data", texts)
    exported = result(export_of(run), "--data", texts, "--trust-remote-code")
    for one, other in zip(checkpoint["measures"], exported["measures"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    if name == "mpt":
        refused(evaluate(export_of(run), "--data", texts), "add --trust-remote-code")


@pytest.mark.parametrize("steps", [2, 3])  # in the patch stage, and at the switch itself
def test_a_checkpoint_that_has_read_no_tokens_says_so(steps: int, trained: Path, texts: Path) -> None:
    done = evaluate(checkpoint_of(trained, steps), "--data", texts)
    assert done.exit_code == 0
    assert "loss on single tokens says little yet" in " ".join(done.stdout.split())
    assert f"{steps} steps on patches of 4" in done.stdout


def test_the_table_and_the_file(export: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    done = evaluate(export, "--data", texts, "--out", out)
    assert done.exit_code == 0
    assert "windows of 8 tokens, stride 8" in done.stdout
    rows, documents = json.loads(out.read_text())["measures"]
    assert f"{rows['loss']:.4f}" in done.stdout
    assert f"{documents['word_perplexity']:.4g}" in done.stdout
    assert "The paper has no model of about this size." in done.stdout
    before = out.read_bytes()
    refused(evaluate(export, "--data", texts, "--out", out), "exists, and is not overwritten")
    assert out.read_bytes() == before


def test_the_papers_rows() -> None:
    row = paper_row(369_000_000)
    assert row is not None
    assert "370M (arXiv 2407.12665, table 3" in str(row)
    assert (row.tokens_only, row.patches) == (10.94, 10.68)
    assert paper_row(500_000_000) is None


def test_two_results_are_compared(export: Path, texts: Path, tmp_path: Path) -> None:
    other = shutil.copytree(export, tmp_path / "other")
    model = LlamaForCausalLM.from_pretrained(export)
    with torch.no_grad():
        model.lm_head.weight *= 1.1
    model.save_pretrained(other)
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    first, second = result(export, "--data", texts, "--out", a), result(other, "--data", texts, "--out", b)
    found = json.loads(evaluate("--compare", a, b, "--json").stdout)
    for one, here, there in zip(found, first["measures"], second["measures"], strict=True):
        assert one["first"] == pytest.approx(here["bits_per_byte"])
        assert one["second"] == pytest.approx(there["bits_per_byte"])
        assert one["low"] < one["second"] - one["first"] < one["high"]
    assert "B - A" in evaluate("--compare", a, b).stdout
    assert json.loads(evaluate("--compare", a, a, "--json").stdout)[0]["error"] == 0
    refused(evaluate("--compare", a, texts), "is not JSON")
    c = tmp_path / "c.json"
    result(export, "--data", texts, "--stride", 4, "--out", c)
    refused(evaluate("--compare", a, c), "different strides: 8 and 4")
    texts.write_text('{"text": "w1 w2 w3"}\n')
    (tmp_path / "d.json").unlink(missing_ok=True)
    result(export, "--data", texts, "--out", tmp_path / "d.json")
    refused(evaluate("--compare", a, tmp_path / "d.json"), "of different data")


def test_the_bootstrap_error_is_that_of_a_mean() -> None:
    random = np.random.default_rng(1)
    shared, extra = random.normal(50, 20, 400), random.normal(1, 3, 400)

    def made(nats: np.ndarray) -> dict:
        units = [[float(one), 10, 10, 10.0] for one in nats]
        same = {"preset": "paper", "seq_len": 8, "stride": 8, "data": {"digest": "x", "path": "x"}}
        return same | {"measures": [{"name": "documents", "units": units}]}

    (found,) = compare(made(shared), made(shared + extra))
    in_bits = 10 * np.log(2)
    assert found.second - found.first == pytest.approx(extra.mean() / in_bits)
    # Paired: what both have in common, which is seven times as wide, is not in it.
    assert found.error == pytest.approx(extra.std() / 20 / in_bits, rel=0.05)


def test_a_comparison_names_its_unit_where_a_component_has_a_space(tmp_path: Path) -> None:
    data = {"digest": "x", "path": "pile-mds"}
    units = [[30.0, 10, 10, 40.0], [25.0, 10, 10, 40.0]]
    content = {
        "kind": "patch-level eval",
        "format": 1,
        "preset": "pile",
        "seq_len": 8,
        "stride": 8,
        "data": data,
        "measures": [{"name": "PubMed Central", "units": units}],
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    header = evaluate("--compare", file, file).stdout.splitlines()[3]
    assert header.split() == [
        "bits",
        "per",
        "byte",
        "A",
        "B",
        "B",
        "-",
        "A",
        "error",
        "95",
        "%",
        "interval",
        "units",
    ]
    tasks = [{"task": "piqa", "measure": "acc", "scores": [1.0, 0.0]}]
    file.write_text(json.dumps(content | {"preset": "zero-shot", "measures": [], "tasks": tasks}))
    assert evaluate("--compare", file, file).stdout.splitlines()[3].split()[0] == "A"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["EXPORT"], "Expected a checkpoint or an export, and --data"),
        (["EXPORT", "--data", "none.jsonl"], "There is no evaluation data at none.jsonl"),
        (
            ["EXPORT", "--data", "TEXTS", "--preset", "papr"],
            "there are paper, pile, zero-shot. Did you mean 'paper'?",
        ),
        (["EXPORT", "--data", "TEXTS", "--stride", "9"], "--stride 9: expected 1 to 8"),
        (
            ["EXPORT", "--data", "TEXTS", "--seq-len", "0"],
            "--seq-len 0: expected 2 to 8, the model's context",
        ),
        (["EXPORT", "--data", "TEXTS", "--seq-len", "9"], "expected 2 to 8, the model's context"),
        (["EXPORT", "--data", "TEXTS", "--preset", "pile"], "holds no dataset.json"),
        (["none.pt", "--data", "TEXTS"], "There is no checkpoint none.pt"),
        (["TEXTS", "--data", "TEXTS"], "cannot be read: it is damaged"),
        (["EXPORT", "--compare", "a", "b"], "takes two results, without a model"),
        (["--compare", "a", "b"], "There is no result a"),
    ],
)
def test_bad_arguments(arguments: list[str], words: str, export: Path, texts: Path) -> None:
    places = {"EXPORT": str(export), "TEXTS": str(texts)}
    refused(evaluate(*(places.get(one, one) for one in arguments)), words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"no json\n", "a.jsonl, line 1: expected a JSON object with a field 'text'"),
        ("a.jsonl", b'{"text": "w1"}\n{"text": 3}\n', "line 2: the field 'text' is not a string"),
        ("a.jsonl", b'{"content": "w1"}\n', "line 1: expected a JSON object with a field 'text'"),
        ("a.txt", b"\xff\xfe", "is not a text file in UTF-8"),
        ("a.txt", b"", "holds no text"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz cannot be read"),
        ("a.csv", b"w1", "expected a file that ends in"),
    ],
)
def test_data_that_is_not_what_its_name_says(
    name: str, content: bytes, words: str, export: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(evaluate(export, "--data", tmp_path / name), words)


def test_a_folder_that_mixes_text_files_with_other_data(export: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wikitext"
    (folder / "more").mkdir(parents=True)
    (folder / "LICENSE.txt").write_text("w1 w2 w3")
    (folder / "more" / "test.jsonl").write_text('{"text": "w1 w2 w3"}\n')
    refused(evaluate(export, "--data", folder), "text files (LICENSE.txt) and other data (more/test.jsonl)")
    result(export, "--data", folder / "LICENSE.txt")


def test_a_damaged_checkpoint(trained: Path, texts: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.pt"
    short.write_bytes(checkpoint_of(trained).read_bytes()[:-1000])
    refused(evaluate(short, "--data", texts), "is damaged, cut short or not one of Composer's")


def test_kinds_of_text_give_the_same(export: Path, texts: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    pq.write_table(pa.table({"text": lines}), tmp_path / "t.parquet")
    (tmp_path / "folder").mkdir()
    for number, text in enumerate(lines):
        (tmp_path / "folder" / f"{number}.txt").write_text(text)
    wanted = result(export, "--data", texts)
    for place in (tmp_path / "t.parquet", tmp_path / "folder"):
        found = result(export, "--data", place)
        assert found["measures"] == wanted["measures"]
        assert found["data"]["digest"] == wanted["data"]["digest"]
