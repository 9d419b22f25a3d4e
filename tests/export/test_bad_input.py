"""What is no export, no checkpoint, or not of one run, is refused, and nothing is changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from patch_algorithm.cli import app
from tests.export.runs import check, checkpoint_of, contents, export_of, run_config
from tests.support import write_corpus

RunOf = Callable[..., Path]


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("patch-level check-export: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


@pytest.fixture
def export(run_of: RunOf, tmp_path: Path) -> Path:
    return shutil.copytree(export_of(run_of("llama")), tmp_path / "export")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (shutil.rmtree, "does not exist. Give the folder of an export"),
        (lambda f: (f / "config.json").unlink(), "is not an export: it holds no config.json"),
        (lambda f: cut(f / "config.json"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "is not a JSON object"),
        (lambda f: (f / "config.json").write_text("{}"), "names no model_type"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights: expected model.safetensors"),
        (lambda f: cut(f / "model.safetensors"), "it was cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "is not a safetensors file, or is damaged"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer that can be loaded"),
        (lambda f: cut(f / "tokenizer.json"), "the run's tokenizer (tokenizer.json, "),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter (PEFT)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_that_is_no_export(harm: Callable[[Path], object], words: str, export: Path) -> None:
    harm(export)
    before = contents(export)
    refused(check(export, "--fix"), words)
    assert contents(export) == before


def test_a_missing_part_of_the_weights(export: Path) -> None:
    (export / "model.safetensors").rename(export / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (export / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(check(export), "lacks model-2.safetensors")


def test_the_folder_of_the_run_names_its_exports(run_of: RunOf) -> None:
    run = run_of("gpt2")
    refused(check(run), "Below it are: ", str(export_of(run, 2)), str(export_of(run, 4)))
    refused(check(checkpoint_of(run)), "is a file")


def test_code_of_the_export_runs_only_if_allowed(run_of: RunOf, tmp_path: Path) -> None:
    export = shutil.copytree(export_of(run_of("mpt")), tmp_path / "export")
    ran = tmp_path / "ran"
    code = export / "modeling_mpt.py"
    code.write_text(f"open({str(ran)!r}, 'w')\n{code.read_text()}")
    result = CliRunner().invoke(app, ["check-export", str(export)])
    refused(result, "brings its model as Python code", "--trust-remote-code")
    assert not ran.exists()
    code.unlink()
    refused(check(export), "lacks modeling_mpt.py")


def test_checkpoints_that_are_none(run_of: RunOf, export: Path, tmp_path: Path) -> None:
    run = run_of("llama")

    def with_checkpoint(path: object) -> Result:
        return check(export, "--checkpoint", path)

    refused(with_checkpoint(run / "ep0-ba9-rank0.pt"), "There is no checkpoint", "ep0-ba4-rank0.pt")
    refused(with_checkpoint("s3://bucket/latest-rank0.pt"), "is on another machine")
    refused(with_checkpoint(run), "is not a sharded checkpoint", "ep0-ba4-rank0.pt")
    damaged = Path(shutil.copy(checkpoint_of(run), tmp_path / "damaged.pt"))
    cut(damaged)
    refused(with_checkpoint(damaged), "it is damaged, cut short or not one of Composer's")
    damaged.write_bytes(b"")
    refused(with_checkpoint(damaged), "it is damaged, cut short or not one of Composer's")
    torch.save({"model": {}}, damaged)
    refused(with_checkpoint(damaged), "holds no state of a run")


def test_a_checkpoint_of_another_model(run_of: RunOf, export: Path) -> None:
    refused(check(export, "--checkpoint", checkpoint_of(run_of("gpt2"))), "is not of this checkpoint")


def test_a_tokenizer_that_is_not_the_checkpoints(run_of: RunOf, export: Path) -> None:
    settings = json.loads((export / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (export / "tokenizer.json").write_text(json.dumps(settings))
    refused(check(export, "--checkpoint", checkpoint_of(run_of("llama"))), "is not the one in the checkpoint")


def test_a_tokenizer_with_more_ids_than_the_model(export: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(export)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(export)
    refused(check(export), "its ids go up to 96, but the model has 96 embeddings")


def test_a_tokenizer_that_is_not_the_datas(run_of: RunOf, corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    cfg = run_config("llama", corpus, tmp_path)
    path.write_text(yaml.safe_dump(cfg))
    export = export_of(run_of("llama"))
    assert check(export, "--config", path).exit_code == 0

    other = write_corpus(tmp_path / "other")
    described = json.loads((other / "mds/dataset.json").read_text())
    described["tokenizer"] |= {"fingerprint": "0" * 64, "name": "gpt2"}
    (other / "mds/dataset.json").write_text(json.dumps(described))
    cfg["train_loader"]["dataset"]["local"] = str(other / "mds")
    path.write_text(yaml.safe_dump(cfg))
    refused(check(export, "--config", path), "was written with (gpt2)")
    refused(check(export, "--config", tmp_path / "none.yaml"), "none.yaml")


def test_a_configuration_of_another_run_is_said(run_of: RunOf, corpus: Path, tmp_path: Path) -> None:
    run, path = run_of("llama"), tmp_path / "run.yaml"
    cfg = run_config("llama", corpus, tmp_path)
    cfg["algorithms"]["patch_level"] = {"k": 2, "ratio": "3ba"}
    path.write_text(yaml.safe_dump(cfg))
    result = check(export_of(run), "--checkpoint", checkpoint_of(run), "--config", path)
    assert result.exit_code == 0
    assert "warning  export-other-run" in result.stdout
    assert "k=2, switch at 3ba" in result.stdout
    assert "k=4, switch at 3ba" in result.stdout
