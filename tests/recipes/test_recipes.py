"""Every recipe and variant: healthy to doctor, true to its numbers, trained by its documented overrides."""

from __future__ import annotations

import difflib
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.recipes import Case, Losses, cases, header, places, row, shrunken, train, train_all
from patch_algorithm.checks import Severity
from patch_algorithm.planning.config import read_config
from patch_algorithm.planning.doctor import examine
from patch_algorithm.planning.plan import make_plan
from patch_algorithm.planning.run_file import RunFile
from patch_algorithm.recipes import find_recipe

CASES = {str(case): case for case in cases()}
PATCHED = [name for name in CASES if not name.startswith("finetune/")]
QUICK = ["mpt-125m", "paper/llama-370m"]
SIZES = {"370m": 369, "780m": 781, "1.3b": 1345, "2.7b": 2693}


def slowly(names: list[str]) -> list[Any]:
    """The recipes themselves in the quick suite, their variants with the marker ``recipes``."""
    return [pytest.param(name, marks=[pytest.mark.recipes] * bool(CASES[name].variant)) for name in names]


@pytest.mark.parametrize("name", slowly([*CASES]))
def test_doctor_finds_nothing_that_the_header_does_not_name(name: str) -> None:
    case = CASES[name]
    found = examine(read_config(str(case.recipe.path), case.overrides), str(case.recipe.path))
    assert Severity.error not in {one.severity for one in found}, [one.found for one in found]
    warned = {one.id for one in found if one.severity is Severity.warning}
    assert {one for one in warned if one not in case.recipe.text} == set()


def test_the_papers_experiments_are_there() -> None:
    variants = {case.variant for case in CASES.values() if case.recipe.name == "paper/llama-370m"}
    assert variants >= {
        "", "token", "half", "four-fifths", "45b", "90b", "180b", "k2", "k4", "k8", "k16", "epochs",
        "epochs-half", "epochs-four-fifths", "short-rows", "readme",
    }  # fmt: skip
    assert all(f"paper/llama-{size}:token" in CASES for size in SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_the_papers_shapes_have_the_papers_sizes(size: str) -> None:
    cfg = read_config(str(find_recipe(f"paper/llama-{size}").path))
    # Over a config that states another head_dim, as that of Llama 2 does.
    config = LlamaConfig()
    for key, value in cfg.model.config_overrides.items():
        setattr(config, key, value)
    config.max_position_embeddings = cfg.max_seq_len
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) // 10**6 == SIZES[size]


def test_the_evenings_llama_has_the_size_of_its_title() -> None:
    recipe = find_recipe("evening-125m")
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**read_config(str(recipe.path)).model.config_overrides))
    assert f"A Llama of {round(model.num_parameters() / 1e6)}M" in recipe.title


@pytest.mark.parametrize("size", SIZES)
def test_the_papers_settings(size: str) -> None:
    cfg = read_config(str(find_recipe(f"paper/llama-{size}").path))
    assert cfg.global_train_batch_size * cfg.variables.tokens_per_row == 2**21
    assert Fraction(cfg.algorithms.patch_level.ratio) * 180_000 == 120_000
    assert cfg.max_duration == "180000ba"
    assert cfg.variables.tokens_per_row == cfg.algorithms.patch_level.k * cfg.max_seq_len


@pytest.mark.parametrize("size", ["780m", "1.3b", "2.7b"])
def test_the_four_sizes_differ_in_their_shape_alone(size: str) -> None:
    one, other = (
        [line for line in find_recipe(f"paper/llama-{name}").text.splitlines() if not line.startswith("#")]
        for name in ("370m", size)
    )
    changed = [
        line.split(":")[0].strip("+ ") for line in difflib.unified_diff(one, other, n=0) if line[0] == "+"
    ]
    shape = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    assert set(changed[1:]) <= shape | {"num_key_value_heads", "head_dim", "config_overrides"}


@pytest.mark.parametrize("name", ["mpt-125m", "mpt-7b", "evening-125m", "cpu-hour", "paper/llama-370m"])
def test_the_steps_of_a_header_are_those_of_its_run(name: str) -> None:
    recipe = find_recipe(name)
    cfg = read_config(str(recipe.path))
    steps = int(cfg.max_duration.removesuffix("ba"))
    switch = math.ceil(Fraction(cfg.algorithms.patch_level.ratio) * steps)
    text = header(recipe.text)
    for line in (
        f"0 .. {switch - 1:,} ",
        f"{switch:,} .. {steps - 1:,} ",
        f"{cfg.variables.tokens_per_row} tokens",
    ):
        assert line in text
    assert cfg.variables.tokens_per_row == cfg.algorithms.patch_level.k * cfg.max_seq_len


def check(case: Case, folder: Path) -> Losses:
    given = places(case, folder)
    losses = train(case.recipe, [*shrunken(case), *given, f"save_folder={folder}/saved"])
    assert all(math.isfinite(loss) for loss in losses.patch + losses.token)
    ratio = read_config(str(case.recipe.path), case.overrides).algorithms.patch_level.ratio
    assert len(losses.patch) == math.ceil(Fraction(ratio) * len(losses.patch + losses.token))
    return losses


@pytest.mark.parametrize("name", QUICK)
def test_two_recipes_train_in_both_stages(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    losses = check(case, tmp_path)
    assert (len(losses.patch), len(losses.token)) == (8, 4)
    assert losses.patch[-1] < losses.patch[0]
    assert f"| `{name}` | {case.recipe.title} | {losses.patch[0]:.2f} → " in row(case, losses)


@pytest.mark.recipes
@pytest.mark.parametrize("name", [name for name in PATCHED if name not in QUICK])
def test_every_recipe_trains_in_both_stages(name: str, tmp_path: Path) -> None:
    losses = check(CASES[name], tmp_path)
    assert len(losses.token) >= 2


@pytest.mark.recipes
def test_instruction_tuning_of_a_finished_model(tmp_path: Path) -> None:
    case = CASES["finetune/instruct"]
    losses = train(case.recipe, [*shrunken(case), *places(case, tmp_path), f"save_folder={tmp_path}/saved"])
    assert (len(losses.patch), len(losses.token)) == (0, 12)
    assert losses.token[-1] < losses.token[0]


@pytest.mark.parametrize(("size", "millions"), {"270m": 267, "600m": 600, "3b": 3337}.items())
def test_token_superpositions_shapes_have_its_sizes(size: str, millions: int) -> None:
    cfg = read_config(str(find_recipe(f"tst/llama-{size}").path))
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**cfg.model.config_overrides))
    assert model.num_parameters() // 10**6 == millions


@pytest.mark.parametrize("size", ["270m", "600m", "3b"])
def test_token_superpositions_settings(size: str) -> None:
    recipe = find_recipe(f"tst/llama-{size}")
    run = make_plan(RunFile.read(str(recipe.path), _NO_MODEL), devices=8).costs[1]
    patch, token = run.stages
    assert (patch.k, patch.steps, token.steps) == (6, 6_000, 14_000)
    assert patch.positions_per_step == token.positions_per_step == 2_064_384
    assert patch.raw_tokens == 6 * 6_000 * 2_064_384
    assert run.patch_share_of_compute == pytest.approx(0.3)
    text = header(recipe.text)
    for said in ("0 .. 5,999 ", "6,000 .. 19,999 ", "12,386,304", "1,008 rows", "103 billion"):
        assert said in text
    assert 103e9 < run.raw_tokens < 104e9
    assert not [one for one in run.stages if one.rows_per_step % 8], "8 GPUs share a batch evenly"


# A tiny model in the place of the one on the hub; what a step takes does not depend on it.
_NO_MODEL = [
    "model={name: mpt_causal_lm, d_model: 32, n_heads: 2, n_layers: 1, max_seq_len: 2048, vocab_size: 64}"
]


def test_the_fitted_weights_are_the_papers_law() -> None:
    case = CASES["tst/llama-270m:s16-fitted"]
    weights = json.loads(case.value("algorithms.patch_level.target_weights") or "")
    assert weights == [round(3.63 + 1.35 * d**-1.25, 2) for d in range(1, 17)]


@pytest.mark.recipes
def test_the_table_goes_on_where_it_was_broken_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [CASES["tst/llama-270m"], CASES["tst/llama-270m:token"]]
    first = next(iter(train_all(wanted, tmp_path)))
    lines = (tmp_path / "losses.jsonl").read_text().splitlines()
    assert len(lines) == 1
    (tmp_path / "losses.jsonl").write_text(lines[0] + "\n" + lines[0][:40])  # killed in the midst of a line
    again = list(train_all(wanted, tmp_path))
    assert again[0] == first
    assert len((tmp_path / "losses.jsonl").read_text().splitlines()) == 3
