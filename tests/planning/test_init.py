"""Stock configurations made into good ones: what changes, what stays, and that the result trains."""

from __future__ import annotations

import dataclasses
import shutil
from difflib import ndiff
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from transformers import GPT2Config
from typer.testing import CliRunner

from patch_algorithm.checks import Finding, Severity
from patch_algorithm.cli import app
from patch_algorithm.data.dataset.description import DatasetInfo
from patch_algorithm.planning.config import read_config
from patch_algorithm.planning.doctor import examine
from patch_algorithm.planning.init_config import InitOptions, rewrite
from tests.planning.stock import GPT2_SMALL, MPT_1B, MPT_SMALL_CPU, STOCK
from tests.support import metrics, train, write_corpus


def rewritten(text: str, **options: Any) -> dict[str, Any]:
    return yaml.safe_load(rewrite(text, InitOptions(**options)).text)


@pytest.mark.parametrize("name", STOCK)
def test_doctor_passes_on_the_result(name: str, tmp_path: Path) -> None:
    stock, out = tmp_path / "stock.yaml", tmp_path / "new.yaml"
    stock.write_text(STOCK[name])
    before = {one.id for one in examine(with_algorithm(STOCK[name]))}
    assert {"rate-low-at-switch", "rows-of-context"} & before
    result = CliRunner().invoke(app, ["init", str(stock), "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = [
        one for one in examine(read_config(str(out))) if one.severity in (Severity.error, Severity.warning)
    ]
    # Ten steps are what the smallest of them has.
    assert {one.id for one in found} <= ({"token-stage-short"} if name == "mpt-small-cpu" else set())


def bad(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if one.severity in (Severity.error, Severity.warning)]


def with_algorithm(text: str) -> Any:
    cfg = OmegaConf.create(text)
    OmegaConf.update(cfg, "algorithms.patch_level", {"k": 4, "ratio": 0.67}, force_add=True)
    OmegaConf.update(cfg, "scheduler.t_warmup", "0.01dur")
    return cfg


def test_what_is_changed() -> None:
    new = rewritten(MPT_1B)
    assert new["algorithms"]["patch_level"] == {"k": 4, "ratio": "2/3", "seq_len": "${max_seq_len}"}
    assert new["algorithms"]["gradient_clipping"]["clipping_threshold"] == 1.0
    assert new["train_loader"]["dataset"]["max_seq_len"] == 8192
    assert new["eval_loader"]["dataset"]["max_seq_len"] == "${max_seq_len}"
    assert new["global_train_batch_size"] == 128
    assert new["device_train_microbatch_size"] == 4
    assert new["scheduler"] == {
        "name": "warmup_stable_decay",
        "t_warmup": "100ba",
        "t_decay": "0.1dur",
        "alpha_f": 0.1,
    }
    assert new["loggers"] == {"history": {}}
    assert rewritten(MPT_SMALL_CPU)["scheduler"]["t_warmup"] == "0.05dur", "100 of 10 batches"
    assert rewritten(MPT_1B, ratio="0.95")["scheduler"]["t_decay"] == "0.025dur"
    assert rewritten(MPT_1B, ratio="0.95")["algorithms"]["patch_level"]["ratio"] == 0.95
    assert rewritten(MPT_1B, k=2)["global_train_batch_size"] == 256


def test_the_papers_schedule() -> None:
    text = MPT_1B.replace("alpha_f: 0.1\n", "alpha_f: 0.1  # a tenth\n# Adam\n")
    document = rewrite(text, InitOptions(per_stage=True))
    assert "    alpha_f: 0.1\n# Adam\n\noptimizer:" in document.text, "comments below a key outlive it"
    new = yaml.safe_load(document.text)
    assert new["algorithms"]["patch_level"]["on_switch"] == "reset"
    assert new["scheduler"] == {
        "name": "per_stage",
        "scheduler": {"name": "cosine_with_warmup", "t_warmup": "100ba", "alpha_f": 0.1},
    }
    assert bad(examine(OmegaConf.create(new))) == []


@pytest.mark.parametrize("name", STOCK)
def test_comments_and_order_stay(name: str) -> None:
    document = rewrite(STOCK[name], InitOptions())
    changed = {key for edit in document.edits for key in edit.path}
    different = [
        line for line in ndiff(STOCK[name].splitlines(), document.text.splitlines()) if line[0] in "+-"
    ]
    assert {line[2:].split(":")[0].strip() for line in different} <= changed
    gone = {line[2:].split(":")[0].strip() for line in different if line[0] == "-"}
    assert gone <= {"max_seq_len", "name", "t_warmup", "global_train_batch_size"}
    assert "alpha_f: 0.1\n\noptimizer:" in document.text, "a section ends as it did"
    assert "clipping_threshold: 1.0\n\nmax_duration:" in document.text


def test_each_changed_line_has_its_reason() -> None:
    diff = rewrite(MPT_1B, InitOptions()).diff("stock.yaml", "new.yaml").splitlines()
    added = [line for line in diff if line.startswith("+") and not line.startswith("+++")]
    sections = ("patch_level:", "loggers:", "+")
    bare = [line for line in added if "# <- " not in line and not line.rstrip().endswith(sections)]
    assert bare == []
    (rows,) = [line for line in added if "max_seq_len: 8192" in line]
    assert rows.endswith("# <- rows of k * L = 4 * 2048 tokens, so that positions stay 2048 in both stages")


def test_an_older_file_with_variables_at_the_top() -> None:
    older = MPT_1B.replace("variables:\n", "").replace("  data_local: .", "data_local: .")
    older = older.replace("  data_remote:", "data_remote:").replace("  global_seed: 17", "global_seed: 17")
    older = older.replace("${variables.", "${")
    assert "unknown-key" in {one.id for one in examine(OmegaConf.create(older))}
    new = rewritten(older)
    assert new["variables"] == {"data_local": "./my-copy-c4", "data_remote": None, "global_seed": 17}
    assert new["seed"] == "${variables.global_seed}"
    comments = [line for line in older.splitlines() if line.startswith("#")]
    assert [line for line in rewrite(older, InitOptions()).text.splitlines() if line in comments] == comments
    assert "unknown-key" not in {one.id for one in examine(OmegaConf.create(new))}


def test_weight_decay_and_a_batch_that_does_not_divide() -> None:
    text = MPT_1B.replace("weight_decay: 0.0", "weight_decay: 0.1").replace("size: 512", "size: 10")
    new = rewritten(text)
    assert new["optimizer"]["weight_decay"] == 6e-5
    assert new["global_train_batch_size"] == 2


def test_a_product_is_written_as_a_person_writes_it() -> None:
    text = MPT_1B.replace("weight_decay: 0.0", "weight_decay: 0.1").replace("lr: 6.0e-4", "lr: 3.0e-4")
    assert 0.1 * 3e-4 != 3e-5, "the last bit of the product is what is rounded away"
    new = rewrite(text, InitOptions()).text
    assert "  lr: 3.0e-4\n" in new
    assert "  weight_decay: 3.0e-05\n" in new


def test_the_two_lines_may_be_there_already() -> None:
    def result(line: str, **options: Any) -> dict[str, Any]:
        text = MPT_SMALL_CPU.replace("algorithms:\n", f"algorithms:\n  patch_level: {line}\n")
        return yaml.safe_load(rewrite(text, InitOptions(**options)).text)

    assert result('{k: 4, ratio: "2/3"}') == rewritten(MPT_SMALL_CPU)
    kept = result("{k: 2, ratio: 0.5}")
    assert kept == rewritten(MPT_SMALL_CPU, k=2, ratio="0.5")
    assert result("{k: 2, ratio: 0.5}", k=4)["algorithms"]["patch_level"]["k"] == 4


def test_data_of_an_object_store_is_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shards are cached in ``local``, which a folder's data would be read from."""
    folder = write_corpus(tmp_path) / "mds"
    description = DatasetInfo.read(str(folder))
    monkeypatch.setattr(DatasetInfo, "read", staticmethod(lambda place: description))
    new = rewritten(MPT_1B, data="s3://bucket/pile")
    for loader in ("train_loader", "eval_loader"):
        assert new[loader]["dataset"]["remote"] == "s3://bucket/pile"
        assert "local" not in new[loader]["dataset"]
    assert new["tokenizer"]["name"] == description.tokenizer.name


def test_a_list_of_eval_loaders_is_not_left_on_other_data(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path) / "mds"
    stock = yaml.safe_load(MPT_1B)
    stock["eval_loader"] = [stock["eval_loader"]]
    with pytest.raises(ValueError, match="eval_loader is a list of 1"):
        rewrite(yaml.safe_dump(stock), InitOptions(data=str(folder)))


def test_an_evaluation_of_the_training_split_cuts_its_rows(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, row=512) / "mds"
    with_val = rewritten(MPT_SMALL_CPU, data=str(data))
    assert "long_rows" not in with_val["eval_loader"]["dataset"]
    info = DatasetInfo.read(data)
    dataclasses.replace(info, row_tokens={"train": 512}, streams=info.streams[:1]).write(data)
    new = rewritten(MPT_SMALL_CPU, data=str(data))
    assert (
        new["eval_loader"]["dataset"] | {"split": "train", "long_rows": "cut"}
        == new["eval_loader"]["dataset"]
    )
    found = {one.id for one in examine(OmegaConf.create(new))}
    assert "eval-reads-training-data" in found
    assert "rows-cut-short" not in found


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none.yaml", "--out", "new.yaml"], "there is no configuration file"),
        (["stock.yaml", "--out", "stock.yaml"], "exists, and is not overwritten"),
        (["stock.yaml", "--out", "none/new.yaml"], "there is no folder none"),
        (["stock.yaml", "--out", "new.yaml", "--k", "1"], "--k=1 is not a whole number of at least 2"),
        (["stock.yaml", "--out", "new.yaml", "--ratio", "soon"], "--ratio='soon'"),
        (["stock.yaml", "--out", "new.yaml", "--data", "none"], "holds no dataset.json"),
        (["finetuning.yaml", "--out", "new.yaml"], "train_loader.name is 'finetuning'"),
        (["patched.yaml", "--out", "new.yaml"], "already has algorithms.patch_level, with seq_len"),
    ],
)
def test_bad_input(args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stock.yaml").write_text(MPT_1B)
    Path("finetuning.yaml").write_text(MPT_1B.replace("name: text", "name: finetuning"))
    Path("patched.yaml").write_text(rewrite(MPT_1B, InitOptions()).text)
    result = CliRunner().invoke(app, ["init", *args])
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert "Traceback" not in result.output
    assert not Path("new.yaml").exists()
    assert Path("stock.yaml").read_text() == MPT_1B


@pytest.mark.parametrize("text", [MPT_SMALL_CPU, GPT2_SMALL], ids=["mpt-small-cpu", "hf_causal_lm"])
def test_the_result_trains(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With data of rows of k * L tokens, both stages, from llm-foundry's own training function."""
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(tmp_path, row=32)
    shutil.move(str(tmp_path / "tokenizer"), corpus / "mds" / "tokenizer")
    small = {"max_seq_len: 128": "max_seq_len: 8", "max_seq_len: 1024": "max_seq_len: 8"}
    small |= {"33696ba": "10ba", "amp_bf16": "fp32", "size: 256": "size: 16"}
    for old, new in small.items():
        text = text.replace(old, new)
    stock, out = tmp_path / "stock.yaml", tmp_path / "new.yaml"
    stock.write_text(text)
    result = CliRunner().invoke(app, ["init", str(stock), "--data", str(corpus / "mds"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    cfg = read_config(
        str(out), ["loggers={inmemory: {}}", "callbacks={}", "python_log_level=null", "log_config=false"]
    )
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    if values["model"]["name"] == "hf_causal_lm":
        GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=96, n_positions=8).save_pretrained(
            tmp_path / "gpt2"
        )
        values["model"]["pretrained_model_name_or_path"] = str(tmp_path / "gpt2")
    values["loggers"] = {"inmemory": {}}
    assert values["tokenizer"]["name"] == str(corpus / "mds" / "tokenizer")
    trainer = train(values)
    assert metrics(trainer, "patch_level/positions_per_row") == [8] * 10
    assert metrics(trainer, "patch_level/stage") == [0] * 7 + [1] * 3
