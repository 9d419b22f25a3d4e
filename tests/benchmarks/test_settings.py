"""The identity of a run, what its settings mean, and the order of the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from benchmarks.study.cells import MAIN, next_run, plan
from benchmarks.study.settings import CONTEXT, SIZES, VOCABULARY, Settings
from benchmarks.study.training import RowOrder, make_model
from tests.benchmarks.rows import rows

TOKEN = Settings("0.16M", 20, 4e-3, 1)
PATCH = replace(TOKEN, stages=MAIN)


def test_identities_do_not_change_between_versions() -> None:
    # Committed results are found by these. If this fails, a default or the hash has changed.
    assert TOKEN.identity == "e0b964fb4b9d"
    assert PATCH.identity == "01bbf6d57b2c"


def test_a_default_does_not_enter_the_identity_and_any_other_value_does() -> None:
    assert replace(TOKEN, positions=4096).identity == TOKEN.identity
    others = [
        replace(TOKEN, **change)
        for change in (
            {"seed": 2}, {"rate": 2e-3}, {"positions": 1024}, {"nudge": 1e-6}, {"replica": 1},
            {"schedule": "cosine"}, {"on_switch": "reset"}, {"corpus": "builtin"}, {"stages": MAIN},
        )
    ]  # fmt: skip
    assert len({one.identity for one in (TOKEN, *others)}) == len(others) + 1


@pytest.mark.parametrize("settings", [TOKEN, PATCH, replace(PATCH, stages=((8, 0.1), (4, 0.2)), seed=3)])
def test_settings_are_read_back_as_they_were_written(settings: Settings) -> None:
    assert Settings.from_row(settings.to_row()) == settings


@pytest.mark.parametrize(
    "change",
    [{"size": "1T"}, {"rate": 0.0}, {"positions": 1000}, {"stages": ((4, 1.0),)}, {"stages": ((1, 0.3),)}],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|positive|whole number"):
        replace(TOKEN, **change)  # pyright: ignore[reportArgumentType]


def test_arms_of_a_pair_read_the_same_rows_in_the_same_order() -> None:
    patch = replace(PATCH, tokens_per_parameter=1)
    orders = [[row for step in RowOrder(one, 100) for row in step] for one in (patch.twin(), patch)]
    assert orders[0] == orders[1][: len(orders[0])]
    assert len(orders[1]) == pytest.approx(1.9 * len(orders[0]), rel=0.02)
    assert sorted(orders[1][:100]) == list(range(100))  # each once, before any comes again


def test_twins_of_equal_data_read_as_much() -> None:
    patch = replace(PATCH, hold="tokens", stages=((4, 0.6667),))
    read = [sum(one.rows_of_step(step) for step in range(one.steps)) for one in (patch, patch.twin())]
    assert read[0] == read[1]


@pytest.mark.parametrize("size", [size for size in SIZES if size != "5M"])
def test_parameters_and_flops_are_those_of_the_model(size: str) -> None:
    shape = SIZES[size]
    assert shape.parameters == sum(p.numel() for p in make_model(replace(TOKEN, size=size)).parameters())
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 16,
        tie_word_embeddings=True,
        attn_implementation="eager",  # torch does not count its fused attention on CPUs
    )
    with FlopCounterMode(display=False) as counter:
        LlamaForCausalLM(config)(torch.zeros(2, CONTEXT, dtype=torch.long)).logits.sum().backward()
    assert counter.get_total_flops() / (2 * CONTEXT) == pytest.approx(shape.flops_per_position, rel=0.01)


def test_the_plan_waits_for_the_sweep_and_takes_its_best_rate() -> None:
    cells = plan({})
    assert [cell.name for cell in cells] == ["noise floor", "rate sweep 0.16M"]
    sweep = cells[1].runs
    found = plan(rows(sweep, lambda one: 2.0 + abs(one.rate - 2e-3)))
    line = next(cell for cell in found if cell.name == "line 0.16M, 40")
    assert {run.rate for run in line.runs} == {2e-3}
    assert {(run.seed, bool(run.stages)) for run in line.runs} == {
        (s, p) for s in (1, 2, 3) for p in (False, True)
    }


def test_a_sweep_goes_on_where_its_best_rate_is_at_the_edge_or_runs_diverge() -> None:
    sweep = plan({})[1].runs
    found = plan(rows(sweep, lambda one: None if one.rate > 2e-3 else 2.0 + one.rate))
    assert [cell.name for cell in found] == ["noise floor", "rate sweep 0.16M"]
    assert min(run.rate for run in found[1].runs) == 5e-4


def test_the_next_run_is_the_first_that_is_neither_done_nor_taken() -> None:
    first, second = plan({})[0].runs[:2]
    assert next_run({}) == ("noise floor", first)
    assert next_run(rows([first], lambda one: 2.0)) == ("noise floor", second)
    assert next_run({}, skip={first.identity}) == ("noise floor", second)
    assert next_run({}, corpora=()) is None
