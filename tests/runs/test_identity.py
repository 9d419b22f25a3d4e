"""Runs that must not differ by a single bit, in fp32 with the same ranks and microbatches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.algorithms.warnings import NoEffectWarning
from composer.core import Event, State
from composer.models import ComposerModel

from patch_algorithm import PatchLevel
from tests.runs.short import (
    Row,
    Watch,
    make_model,
    make_padded_rows,
    make_rows,
    optimizer_tensors,
    run,
    same,
    saving,
    warned,
)
from tests.support import metrics, weights

LOSSES = ("loss/train/total", "metrics/train/LanguageCrossEntropy", "metrics/train/TokenAccuracy")
# Dropout makes the runs draw random numbers, so that a stray draw would show.
DROPOUT = {"resid_pdrop": 0.1, "emb_pdrop": 0.1}


def tied() -> ComposerModel:
    return make_model(n_layers=2, **DROPOUT)


def untied() -> ComposerModel:
    return make_model(tie_word_embeddings=False, **DROPOUT)


def llama(folder: Path, corpus: Path) -> ComposerModel:
    """A tiny Llama, built as llm-foundry builds one from a folder with a config."""
    from llmfoundry.models.hf.hf_causal_lm import ComposerHFCausalLM
    from transformers import AutoTokenizer, LlamaConfig

    LlamaConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        attention_dropout=0.1,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    return ComposerHFCausalLM(
        tokenizer=AutoTokenizer.from_pretrained(corpus / "tokenizer"),
        pretrained_model_name_or_path=str(folder),
        pretrained=False,
    )


def assert_identical(left: Trainer, right: Trainer, last: int) -> None:
    """The last steps' losses and everything at the end are equal bit for bit."""
    for name in LOSSES:
        assert len(metrics(right, name)) >= last
        assert metrics(left, name)[-last:] == metrics(right, name)[-last:]
    left_weights, right_weights = weights(left), weights(right)
    assert list(left_weights) == list(right_weights)
    assert same(left_weights.values(), right_weights.values())
    assert same(optimizer_tensors(left), optimizer_tensors(right))


@pytest.mark.parametrize(
    ("rows", "microbatch"),
    [(make_rows(80, 16), 4), (make_padded_rows(80, 16), 2)],
    ids=["packed", "padded, in microbatches"],
)
def test_k_1_and_ratio_0_are_identical_to_no_algorithm(rows: list[Row], microbatch: int) -> None:
    arguments: dict[str, Any] = {"max_duration": "20ba", "device_train_microbatch_size": microbatch}
    plain = run(rows, model=tied(), **arguments)
    for algorithm in (PatchLevel(k=1, ratio=0.67), PatchLevel(k=4, ratio=0)):
        with warned("no effect", NoEffectWarning):
            trainer = run(rows, [algorithm], model=tied(), **arguments)
        assert_identical(trainer, plain, last=20)
        assert metrics(trainer, "patch_level/stage") == [0] * 20
        assert metrics(trainer, "patch_level/compute_share") == [1.0] * 20


@pytest.mark.parametrize("kind", ["tied", pytest.param("untied", marks=pytest.mark.slow), "llama"])
def test_after_the_switch_identical_to_a_plain_run_from_the_same_state(
    kind: str, tmp_path: Path, corpus: Path
) -> None:
    def model() -> ComposerModel:
        return (
            llama(tmp_path / "config", corpus)
            if kind == "llama"
            else {"tied": tied, "untied": untied}[kind]()
        )

    rows = make_rows(100, 16)
    arguments: dict[str, Any] = {"max_duration": "25ba", "device_train_microbatch_size": 2}
    patched = run(rows, [PatchLevel(k=4, ratio="5ba")], model=model(), **arguments, **saving(tmp_path))
    plain = run(rows, model=model(), load_path=str(tmp_path / "ba5.pt"), **arguments)
    assert len(metrics(plain, "loss/train/total")) == 20
    assert_identical(patched, plain, last=20)


@pytest.mark.parametrize("algorithm", [pytest.param({"k": 1}, marks=pytest.mark.slow), {"ratio": 0}], ids=str)
def test_baseline_is_identical_to_a_plain_run_on_rows_cut_beforehand(algorithm: dict[str, Any]) -> None:
    rows = make_rows(80, 32)
    cut = [
        {key: value[start : start + 8] for key, value in row.items()}
        for row in rows
        for start in range(0, 32, 8)
    ]
    model = {"max_seq_len": 8, **DROPOUT}
    baseline = run(
        rows,
        [PatchLevel(**algorithm)],
        model=make_model(**model),
        max_duration="20ba",
        batch=4,
        device_train_microbatch_size=8,
    )
    plain = run(cut, model=make_model(**model), max_duration="20ba", batch=16, device_train_microbatch_size=8)
    assert_identical(baseline, plain, last=20)
    assert metrics(baseline, "time/token") == metrics(plain, "time/token")


def test_baseline_that_cuts_does_not_say_it_has_no_effect(recwarn: pytest.WarningsRecorder) -> None:
    run(make_rows(8, 32), [PatchLevel(ratio=0)], model=make_model(max_seq_len=8), max_duration="1ba")
    assert not [w for w in recwarn if w.category is NoEffectWarning]


@pytest.mark.parametrize("ratio", ["2ba", "1ep"])
def test_nothing_of_ours_is_left_on_the_model_after_the_switch(ratio: str) -> None:
    def look(state: State) -> None:
        model: Any = state.model
        hooks = [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
        found.append((hooks, "loss" in vars(model)))

    found: list[tuple[list[str], bool]] = []
    rows = make_rows(8, 16)  # two batches
    # Composer evaluates and saves only after BATCH_END, so that already sees the ordinary model.
    watch = Watch(Event.BATCH_CHECKPOINT, look)
    run(rows, [PatchLevel(k=4, ratio=ratio)], max_duration="4ba", callbacks=[watch])
    assert found == [(["", "model.transformer.wte"], False), *[([], False)] * 3]


def test_the_comparison_sees_a_difference() -> None:
    rows = make_rows(16, 16)
    plain = run(rows, max_duration="4ba")
    patched = run(rows, [PatchLevel(k=2, ratio="1ba")], max_duration="4ba")
    with pytest.raises(AssertionError):
        assert_identical(patched, plain, last=3)
