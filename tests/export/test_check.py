"""An export is compared with its checkpoint, and what is wrong with it is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from patch_algorithm.checkpoints.export_folder import ExportFolder
from patch_algorithm.common.context import CONTEXT_NAMES
from tests.export.runs import check, checkpoint_of, contents, export_of, found

RunOf = Callable[..., Path]


@pytest.mark.parametrize("name", ["mpt", "mpt-of-2023", "llama", "gpt2", "olmoe"])
def test_an_export_is_its_checkpoint(name: str, run_of: RunOf) -> None:
    run = run_of(name)
    before = contents(run)
    report = found(check(export_of(run), "--checkpoint", checkpoint_of(run), "--json"))
    stored = load_file(export_of(run) / "model.safetensors")
    assert report["parameters"] == sum(tensor.numel() for tensor in stored.values())
    compared = report["comparison"]
    assert compared["largest_difference"] <= compared["tolerance"] < 1e-2
    assert compared["weights_that_differ"] == []
    assert compared["positions"] == report["context"] == 8
    assert report["training"] == {
        "stages": [{"k": 4, "steps": 3, "tokens": 384}, {"k": 1, "steps": 1, "tokens": 128}],
        "in_patch_stage": False,
        "compute_share": pytest.approx((3 / 4 + 1) / 4),
    }
    # llm-foundry's MPT of 2023 is transformers' own, and can be read as that.
    assert report["ids"].get("error", []) == (["export-misread"] if name == "mpt" else [])
    assert contents(run) == before, "nothing is changed unasked"


@pytest.mark.parametrize("name", CONTEXT_NAMES)
def test_an_export_has_the_context_that_its_model_was_trained_with(name: str) -> None:
    for config in ({name: 2048}, {"max_seq_len": None, "text_config": {name: 2048}}):
        assert ExportFolder(Path(), config, (), {}).context == 2048
    assert ExportFolder(Path(), {name: -1}, (), {}).context is None


def test_text_and_exit_code(run_of: RunOf) -> None:
    run = run_of("llama")
    result = check(export_of(run), "--checkpoint", checkpoint_of(run))
    assert result.exit_code == 0
    assert "LlamaForCausalLM, 7,760 parameters in float32, context 8" in result.stdout
    assert "3 steps on patches of 4, 1 step on tokens; 512 raw tokens; 0.44 of token-only" in result.stdout
    assert "21 of 21 tensors are the checkpoint's bit by bit" in result.stdout
    assert "logits: largest difference" in result.stdout


def test_an_export_in_bfloat16_is_its_rounded_checkpoint(run_of: RunOf) -> None:
    run = run_of("llama", "bfloat16")
    result = check(export_of(run), "--checkpoint", checkpoint_of(run))
    assert result.exit_code == 0
    assert "parameters in bfloat16" in result.stdout
    assert "bit by bit, rounded to bfloat16" in result.stdout


def test_one_changed_weight_is_found(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("llama")
    export = shutil.copytree(export_of(run), tmp_path / "export")
    weights = load_file(export / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-5
    save_file(weights, export / "model.safetensors", metadata={"format": "pt"})
    result = check(export, "--checkpoint", checkpoint_of(run), "--json")
    assert result.exit_code == 1
    report = found(result)
    assert report["comparison"]["weights_that_differ"] == ["model.norm.weight"]
    assert report["ids"]["error"] == ["export-differs"]


def test_a_setting_that_changes_logits_alone_is_found(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("llama")
    export = shutil.copytree(export_of(run), tmp_path / "export")
    settings = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(settings | {"rope_theta": 20.0}))
    result = check(export, "--checkpoint", checkpoint_of(run), "--json")
    assert result.exit_code == 1
    report = found(result)
    assert report["comparison"]["weights_that_differ"] == []
    assert report["ids"]["error"] == ["export-differs"]


def test_a_missing_weight_is_found(run_of: RunOf, tmp_path: Path) -> None:
    export = shutil.copytree(export_of(run_of("llama")), tmp_path / "export")
    weights = load_file(export / "model.safetensors")
    weights["model.norm.other"] = weights.pop("model.norm.weight")
    save_file(weights, export / "model.safetensors", metadata={"format": "pt"})
    result = check(export, "--json")
    assert result.exit_code == 1
    assert found(result)["ids"]["error"] == ["export-weights", "export-weights"]
    assert found(result)["ids"]["skipped"] == ["export-differs"]


def test_a_patch_stage_is_refused_unless_forced(run_of: RunOf) -> None:
    run = run_of("llama")
    at_the_switch = check(export_of(run, 2), "--checkpoint", checkpoint_of(run, 3))
    assert at_the_switch.exit_code == 2
    assert "was on patches of 4 (k=4, switch at 3ba, seq_len=8; step 3)" in at_the_switch.stderr
    pair = export_of(run, 2), "--checkpoint", checkpoint_of(run, 2)
    refused = check(*pair)
    assert refused.exit_code == 2
    assert "was on patches of 4 (k=4, switch at 3ba, seq_len=8; step 2)" in refused.stderr
    forced = check(*pair, "--force", "--json")
    assert forced.exit_code == 0
    assert found(forced)["ids"] == {"warning": ["export-patch-stage"]}


def test_the_export_of_another_step_is_found(run_of: RunOf) -> None:
    run = run_of("llama")
    result = check(export_of(run, 2), "--checkpoint", checkpoint_of(run))
    assert result.exit_code == 1
    assert "21 of 21 weights are not the checkpoint's" in " ".join(result.stdout.split())


def test_a_misread_export_is_found_and_fixed(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("mpt")
    export = shutil.copytree(export_of(run), tmp_path / "export")
    result = check(export, "--json")
    assert result.exit_code == 1
    misread = next(one for one in found(result)["findings"] if one["id"] == "export-misread")
    assert "MptForCausalLM: 7,760 parameters instead of 8,128, 13 weights left out" in misread["found"]

    fixed = check(export, "--checkpoint", checkpoint_of(run), "--fix", "--json")
    assert fixed.exit_code == 0
    assert found(fixed)["ids"] == {}
    assert found(fixed)["changes"] == [
        "configuration_mpt.py: model_type 'mpt' is now 'llmfoundry_mpt'",
        "config.json: model_type 'mpt' is now 'llmfoundry_mpt'",
        "generation_config.json: eos_token_id None is now 94",
    ]
    changed = {
        name for name, content in contents(export).items() if contents(export_of(run))[name] != content
    }
    assert changed == {"configuration_mpt.py", "config.json", "generation_config.json"}
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(export, trust_remote_code=False)
    assert len(AutoTokenizer.from_pretrained(export)) == 96

    # Loaded, saved and loaded again it stays what it is.
    model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True)
    type(model).register_for_auto_class("AutoModelForCausalLM")  # else its code is not saved with it
    model.save_pretrained(tmp_path / "again")
    AutoTokenizer.from_pretrained(export).save_pretrained(tmp_path / "again")
    again = check(tmp_path / "again", "--checkpoint", checkpoint_of(run), "--json")
    assert found(again)["ids"] == {}


@pytest.mark.slow
def test_transformers_itself_misreads_and_after_the_fix_refuses(run_of: RunOf, tmp_path: Path) -> None:
    """In a process of its own: llm-foundry's export changes what transformers looks up in this one."""
    export = shutil.copytree(export_of(run_of("mpt")), tmp_path / "export")
    load = (
        "import sys; from transformers import AutoModelForCausalLM as A;"
        "m = A.from_pretrained(sys.argv[1]); print(type(m).__name__, sum(p.numel() for p in m.parameters()))"
    )

    def plain() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error::UserWarning", "-c", load, str(export)]
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
        )

    assert plain().stdout == "MptForCausalLM 7760\n"
    assert check(export, "--fix").exit_code == 0
    refused = plain()
    assert refused.returncode == 1
    assert "trust_remote_code=True" in refused.stderr


def test_a_fix_that_does_not_fit_the_code_changes_nothing(run_of: RunOf, tmp_path: Path) -> None:
    export = shutil.copytree(export_of(run_of("mpt")), tmp_path / "export")
    code = export / "configuration_mpt.py"
    code.write_text(code.read_text().replace("model_type = 'mpt'", "model_type = 'm' + 'pt'"))
    before = contents(export)
    result = check(export, "--fix")
    assert result.exit_code == 2
    assert "has no class MPTConfig with model_type = 'mpt'; nothing was changed" in result.stderr
    assert contents(export) == before


def test_a_context_that_is_not_the_models_is_found_and_fixed(run_of: RunOf, tmp_path: Path) -> None:
    export = shutil.copytree(export_of(run_of("llama")), tmp_path / "export")
    settings = json.loads((export / "tokenizer_config.json").read_text())
    for stated, words in ((32, "states 32 tokens"), (None, "states no length")):
        (export / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": stated}))
        result = check(export)
        assert result.exit_code == 1
        assert words in result.stdout
    assert check(export, "--fix").exit_code == 0
    assert AutoTokenizer.from_pretrained(export).model_max_length == 8


def test_logits_that_are_no_numbers_do_not_agree(run_of: RunOf, tmp_path: Path) -> None:
    export = shutil.copytree(export_of(run_of("gpt2")), tmp_path / "export")
    weights = load_file(export / "model.safetensors")
    weights["transformer.ln_f.weight"] *= torch.nan
    save_file(weights, export / "model.safetensors", metadata={"format": "pt"})
    assert check(export, "--checkpoint", checkpoint_of(run_of("gpt2"))).exit_code == 1
