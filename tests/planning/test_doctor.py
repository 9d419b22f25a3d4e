"""All checks of a YAML together: healthy files, and each check provoked through a whole file."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from patch_algorithm.checks import Finding, Severity
from patch_algorithm.data.dataset.description import DatasetInfo, StreamInfo
from patch_algorithm.planning.config import read_config
from patch_algorithm.planning.doctor import examine
from tests.planning.runs import HEALTHY
from tests.support import config, mpt

ROOT = Path(__file__).parents[2]
COSINE = {"name": "cosine_with_warmup", "t_warmup": "10ba"}


def found(cfg: dict[str, Any], here: bool = True, **changes: Any) -> list[Finding]:
    merged = OmegaConf.create(cfg)
    for key, value in changes.items():
        OmegaConf.update(merged, key.replace("__", "."), value, merge=False, force_add=True)
    return examine(merged, "run.yaml", here)


def ids(cfg: dict[str, Any], here: bool = True, **changes: Any) -> list[str]:
    # The tiny dataset is read seven times; that is said of every file here.
    always = {"data-repeated", "tokens-per-parameter"}
    return [one.id for one in found(cfg, here, **changes) if one.id not in always]


def test_a_healthy_file(healthy: dict[str, Any]) -> None:
    assert ids(healthy) == []


@pytest.mark.parametrize("name", ["quickstart", "mpt-1b-patch"])
def test_our_own_files(name: str) -> None:
    path = f"yamls/{name}.yaml"
    severities = {one.severity for one in examine(read_config(str(ROOT / path)), path)}
    assert severities <= {Severity.note, Severity.skipped}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_duraton": "1ep"}, ["unknown-key"]),
        ({"algorithms__patch_level__raito": 0.5}, ["unknown-key"]),
        ({"algorithms__patch_lvl": {}}, ["unknown-name"]),
        ({"callbacks": {"speed_monitr": {}}}, ["unknown-name"]),
        ({"callbacks": {"speed_monitor": {"windw_size": 1}}}, ["unknown-key"]),
        ({"loggers": {"histroy": {}}}, ["unknown-name"]),
        ({"optimizer__name": "adamww"}, ["unknown-name"]),
        ({"scheduler__name": "cosine_with_warmp"}, ["unknown-name"]),
        ({"train_loader__dataset__shufle": True}, ["ignored-key"]),
        ({"model__learned_pos_embb": True}, ["ignored-key"]),
        ({"model__attn_config__ropee": True}, ["ignored-key"]),
        ({"model": None}, ["missing-key"]),
        ({"algorithms__patch_level__k": 0}, ["bad-value"]),
        ({"algorithms__patch_level__target_weights": [4, 2, 1]}, ["bad-value"]),
        ({"algorithms__patch_level__target_weights": [4, 2, 1, 1]}, []),
        ({"model__attn_config": "torch"}, ["bad-value"]),
        ({"model__ffn_config": "x"}, ["bad-value"]),
        ({"model__n_heads": 0}, ["bad-value"]),
        ({"tokenizer__kwargs": "x"}, ["bad-value"]),
        ({"algorithms__patch_level__constant_compute": True}, ["ratio-high"]),
        ({"algorithms__patch_level__constant_compute": "yes"}, ["bad-value"]),
        (
            {"algorithms__patch_level__constant_compute": True, "scheduler__t_warmup": "1ep"},
            ["schedule-refused", "ratio-high"],
        ),
        ({"run_name": "${nowhere}"}, ["bad-value"]),
        ({"variables": {"builtin_corpus": {"folder": "x"}}}, ["bad-value"]),
        ({"scheduler": COSINE}, ["rate-low-at-switch"]),
        ({"scheduler": {"name": "cosine_with_warmup", "t_warmup": "10sp"}}, ["schedule-refused"]),
        ({"scheduler": {"name": "cosine_with_warmup"}}, ["schedule-refused"]),
        (
            {
                "scheduler": {
                    "name": "per_stage",
                    "scheduler": {"name": "cosine_with_warmup", "t_warmup": "10ba"},
                }
            },
            [],
        ),
        ({"scheduler": {"name": "per_stage", "scheduler": {"name": "cosine_with_warmp"}}}, ["unknown-name"]),
        ({"optimizer__weight_decay": 0.1}, ["weight-decay-decoupled"]),
        ({"algorithms__patch_level__on_switch": "reset"}, ["no-warmup-after-reset", "token-stage-short"]),
        (
            {"algorithms__patch_level__ratio": 0.9},
            ["rate-low-at-switch", "ratio-high", "token-stage-short"],
        ),
        ({"algorithms__patch_level__k": 2}, []),
        ({"algorithms__patch_level__k": 16}, ["k-high", "rows-of-context"]),
        ({"algorithms__patch_level__ratio": 1.0}, ["no-switch"]),
        ({"scheduler__t_warmup": "0.3dur"}, ["warmup-long"]),
        ({"scheduler": {"name": "constant_with_warmup", "t_warmup": "10ba"}}, ["rate-high-at-end"]),
        (
            {"algorithms__patch_level__eval_at_switch": False, "eval_interval": "140ba"},
            ["eval-misses-switch"],
        ),
        ({"device_train_microbatch_size": 8}, ["microbatch-larger-than-batch"]),
        ({"train_loader__dataset__max_seq_len": 30}, ["rows-do-not-fit", "rows-cut-short"]),
        ({"algorithms__patch_level__seq_len": 16}, ["rows-do-not-fit"]),
        ({"device_train_microbatch_size": 0.5}, ["microbatch-not-whole"]),
        ({"device_train_microbatch_size": "auto"}, ["microbatch-auto-on-cpu"]),
        ({"eval_loader__dataset__max_seq_len": 32}, ["eval-rows-beyond-context", "rows-shorter-than-asked"]),
        ({"train_loader__dataset__local": "/none"}, ["data-missing"]),
        ({"tokenizer__name": "/none/tokenizer"}, ["tokenizer-not-found"]),
        ({"tokenizer__name": "gpt2"}, ["tokenizer-named-otherwise"]),
        (
            {
                "tokenizer__kwargs__model_max_length": 32,
                "callbacks": {"hf_checkpointer": {"save_folder": "runs", "save_interval": "1dur"}},
            },
            ["tokenizer-context"],
        ),
        ({"model__vocab_size": 90}, ["vocabulary-resized"]),
        ({"eval_loader__dataset__split": "train"}, ["eval-rows-cut-short", "eval-reads-training-data"]),
        ({"precision": "amp_bf16"}, ["precision-on-cpu"]),
        ({"model__attn_config__attn_impl": "flash"}, ["flash-attention-on-cpu"]),
        ({"algorithms__patch_level__loss_kernel": "triton"}, ["loss-kernel-on-cpu"]),
        ({"model__loss_fn": "fused_crossentropy"}, ["fused-loss-missing"]),
        ({"eval_interval": 0}, ["no-evaluation"]),
        ({"save_folder": "/dev/null/none"}, ["folder-not-writable"]),
    ],
    ids=str,
)
def test_each_provoked(healthy: dict[str, Any], changes: dict[str, Any], expected: list[str]) -> None:
    assert sorted(ids(healthy, **changes)) == sorted(expected)


def test_llm_foundrys_cosine_and_rows_of_the_context(healthy: dict[str, Any], tmp_path: Path) -> None:
    """The two lines in a stock configuration: what both papers and our documentation warn against."""
    from tests.support import write_corpus

    stock = write_corpus(tmp_path, row=8)
    changed = copy.deepcopy(config(stock, mpt(), **HEALTHY))
    changed["train_loader"]["dataset"]["max_seq_len"] = 8
    changed["scheduler"] = {"name": "cosine_with_warmup", "t_warmup": "10ba", "alpha_f": 0.1}
    assert ids(changed) == ["rate-low-at-switch", "rows-of-context"]


def test_a_misspelt_argument_of_the_scheduler_is_said_once(healthy: dict[str, Any]) -> None:
    changed = {"name": "cosine_with_warmup", "t_wamup": "10ba"}
    assert ids(healthy, scheduler=changed) == ["unknown-key"]


def test_a_scheduler_is_named_once(healthy: dict[str, Any]) -> None:
    longer = {"name": "warmup_stable_decay", "t_warmup": "1000ba"}
    (refused,) = [one for one in found(healthy, scheduler=longer) if one.id == "schedule-refused"]
    assert refused.found.startswith("scheduler warmup_stable_decay: t_warmup='1000ba' and ")


@pytest.mark.parametrize(
    "section", ["model", "tokenizer", "optimizer", "scheduler", "train_loader", "eval_loader"]
)
def test_a_misspelt_name_is_an_error(healthy: dict[str, Any], section: str) -> None:
    changed = {("nme" if key == "name" else key): value for key, value in healthy[section].items()}
    errors = [one for one in found(healthy, **{section: changed}) if one.severity is Severity.error]
    assert [one.id for one in errors] == ["missing-key"]
    assert errors[0].found.startswith(f"{section}.name is missing")
    assert f"Did you mean {section}.nme?" in errors[0].found


def test_rows_that_llm_foundry_cuts_short(healthy: dict[str, Any]) -> None:
    (lost,) = [
        one for one in found(healthy, train_loader__dataset__max_seq_len=8) if one.id == "rows-cut-short"
    ]
    assert "train_loader.dataset.max_seq_len=8 reads 8 of the 32 tokens" in lost.found
    assert "75 % of the tokens" in lost.why


def test_the_data_of_another_tokenizer(healthy: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    shutil.copytree(corpus / "tokenizer", other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace('"w7"', '"other"'))
    assert ids(healthy, tokenizer__name=str(other)) == ["tokenizer-not-the-datas"]


def test_remote_data_is_said_not_to_be_read(healthy: dict[str, Any], tmp_path: Path) -> None:
    remote: dict[str, Any] = {
        "train_loader__dataset__local": str(tmp_path / "none"),
        "train_loader__dataset__remote": "s3://bucket/pile",
    }
    (one,) = [one for one in found(healthy, **remote) if one.id == "data-missing"]
    assert one.severity is Severity.skipped
    assert "s3://bucket/pile is remote and was not read" in one.found


def test_a_curriculum_is_said_not_to_be_read(healthy: dict[str, Any]) -> None:
    curriculum = {"duration": "200tok", "schedule": [{"duration": "200tok", "dataset": {"local": "other"}}]}
    healthy["callbacks"] = {"curriculum_learning": curriculum}
    said = found(healthy)
    assert "data-repeated" not in [one.id for one in said], "of the first dataset it does not read all"
    (skip,) = [one for one in said if one.id == "data-missing"]
    assert skip.severity is Severity.skipped
    assert "callbacks.curriculum_learning.schedule names datasets" in skip.found


def test_an_epoch_of_unknown_length_leaves_the_rate_unchecked_and_says_so(healthy: dict[str, Any]) -> None:
    streams = {"one": {"local": "/none", "split": "train"}}
    changes: dict[str, Any] = {
        "max_duration": "2ep",
        "train_loader__dataset": {"streams": streams, "max_seq_len": 32},
        "eval_interval": "1ep",
    }
    said = [one.found for one in found(healthy, **changes) if one.severity is Severity.skipped]
    assert any("learning rate was not checked: max_duration=2ep" in text for text in said)
    assert any("train_loader.dataset.streams names datasets" in text for text in said)


def test_ids_with_holes_count_by_the_largest(healthy: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus / "mds", data)
    shutil.copytree(corpus / "tokenizer", data / "tokenizer")
    file = data / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["model"]["vocab"]["w7"] = 130
    file.write_text(json.dumps(content))
    changes: dict[str, Any] = {"train_loader__dataset__local": str(data), "model__vocab_size": 128}
    small = [one for one in found(healthy, **changes) if one.id.startswith("vocabulary")]
    assert [one.id for one in small] == ["vocabulary-too-small"], (
        "resizing goes by entries, of which there are 96"
    )
    assert "need 131" in small[0].found
    changes["model__vocab_size"] = 131
    assert not any(one.id.startswith("vocabulary") for one in found(healthy, **changes))


def test_a_tokenizer_with_an_added_token_is_the_datas(
    healthy: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    tokenizer.add_special_tokens({"pad_token": "<a pad of mine>"})
    tokenizer.save_pretrained(tmp_path / "padded")
    data = tmp_path / "data"
    shutil.copytree(corpus / "mds", data)
    shutil.copytree(corpus / "tokenizer", data / "tokenizer")
    changes = {"tokenizer__name": str(tmp_path / "padded"), "train_loader__dataset__local": str(data)}
    assert "tokenizer-not-the-datas" not in ids(healthy, **changes)


def test_every_key_of_the_loader_pile_is_known(healthy: dict[str, Any]) -> None:
    pile = {"train_loader__name": "pile", "train_loader__dataset__verify": True}
    assert "unknown-key" not in ids(healthy, **pile)
    assert "unknown-key" in ids(healthy, **{**pile, "train_loader__dataset__verfy": True})


def test_a_file_for_another_machine_is_not_judged_by_this_one(healthy: dict[str, Any]) -> None:
    changes = {"precision": "amp_bf16", "train_loader__dataset__local": "/none"}
    elsewhere = found(healthy, False, **changes)
    assert {one.severity for one in elsewhere if one.id != "tokens-per-parameter"} == {Severity.skipped}


def test_processes_that_cannot_share_a_batch(
    healthy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert ids(healthy) == ["batch-not-divisible"]


def test_how_often_the_data_is_read(healthy: dict[str, Any]) -> None:
    def passes(max_duration: str) -> list[str]:
        about = [one for one in found(healthy, max_duration=max_duration) if "passes." in one.found]
        return [f"{one.id} {one.found.split(': ')[-1]}" for one in about]

    assert passes("450ba") == ["data-repeated 7 passes."]
    assert passes("26ba") == ["passes-over-data 0.41 passes."]
    assert passes("1ep") == []


def test_a_damaged_description(healthy: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus / "mds", tmp_path / "mds")
    (tmp_path / "mds" / "dataset.json").write_text("{")
    assert ids(healthy, train_loader__dataset__local=str(tmp_path / "mds")) == ["data-damaged"]


def test_an_evaluation_of_one_component(healthy: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    described = DatasetInfo.read(corpus / "mds")
    streams = [
        StreamInfo(f"{name}/{split}", name, split, length, 256, 1, 256 * length, 0)
        for name in ("ArXiv", "Github")
        for split, length in (("train", 32), ("val", 8))
    ]
    dataclasses.replace(described, split_by_component=True, streams=tuple(streams)).write(tmp_path)
    pile = {"train_loader__name": "pile", "train_loader__dataset__local": str(tmp_path)}
    assert ids(healthy, **pile, eval_loader__dataset__local=str(tmp_path)) == ["passes-over-data"]
    one = {"eval_loader__dataset__local": str(tmp_path / "ArXiv")}
    assert ids(healthy, **pile, **one) == ["eval-one-component", "passes-over-data"]
    chosen = pile | {"train_loader__dataset__components": {"ArXiv": 1}}
    assert ids(healthy, **chosen, **one) == [], "which is the one that the run trains on"
    assert any("tokens of 8.19e+03 on disk: 7 passes" in each.found for each in found(healthy, **chosen))
    chosen["train_loader__dataset__components"] = {"ArXiv": 1, "Github": 1}
    (mixed,) = [each for each in found(healthy, **chosen, **one) if each.id == "passes-over-data"]
    assert mixed.severity is Severity.skipped


def test_findings_can_be_accepted(healthy: dict[str, Any]) -> None:
    changes = {"scheduler__t_warmup": "0ba", "variables": {"accepted_findings": ["no-warmup"]}}
    (one,) = [each for each in found(healthy, **changes) if each.id == "no-warmup"]
    assert one.severity == Severity.skipped
    changes["variables"] = {"accepted_findings": ["no-warmp"]}
    assert ids(healthy, **changes) == ["bad-value", "no-warmup"]


def test_code_of_ones_own_may_register_names(healthy: dict[str, Any]) -> None:
    assert ids(healthy, code_paths=["mine.py"], callbacks={"mine": {}}, optimizer__name="mine") == []


def test_a_model_of_hugging_face(healthy: dict[str, Any], tmp_path: Path) -> None:
    hf = {"model_type": "llama", "vocab_size": 96, "max_position_embeddings": 8, "hidden_size": 16}
    hf |= {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(hf))
    model = {"name": "hf_causal_lm", "pretrained_model_name_or_path": str(tmp_path), "pretrained": False}
    assert ids(healthy, model=model) == []
    assert ids(healthy, model=model | {"config_overrides": {"vocab_size": 90}}) == ["vocabulary-too-small"]
    assert ids(healthy, model=model | {"attn_implementation": "flash_attention_2"}) == [
        "flash-attention-on-cpu"
    ]
    assert ids(healthy, model=model | {"pretraind": True}) == ["unknown-key"]
    elsewhere = model | {"pretrained_model_name_or_path": "someone/some-model"}
    del healthy["algorithms"]["patch_level"]["seq_len"]
    assert ids(healthy, model=elsewhere) == ["rows-not-cut"]
