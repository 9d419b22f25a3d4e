"""adamw is torch's, and exempts what it is told to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patch_algorithm.optim.adamw import adamw
from tests.runs.short import make_model, make_rows, run, same

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11))


def three_steps(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        ids_B = torch.randint(0, 11, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(ids_B), ids_B.roll(1)).backward()
        optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


def by_hand(net: nn.Sequential) -> list[dict[str, Any]]:
    embedding, norm, linear = net
    return [
        {"params": [embedding.weight, linear.weight]},
        {"params": [norm.weight, norm.bias, linear.bias], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("exempt", [False, True])
def test_three_steps_are_those_of_torch(exempt: bool) -> None:
    ours, theirs = make_net(), make_net()
    optimizer = adamw(ours.parameters(), decay_norms_and_biases=not exempt, **SETTINGS)
    groups = by_hand(theirs) if exempt else list(theirs.parameters())
    expected = three_steps(theirs, torch.optim.AdamW(groups, **SETTINGS))
    assert same(three_steps(ours, optimizer), expected)
    other = make_net()
    wrong = list(other.parameters()) if exempt else by_hand(other)
    assert not same(three_steps(other, torch.optim.AdamW(wrong, **SETTINGS)), expected)


def test_defaults_are_those_of_torch() -> None:
    (ours,) = adamw(make_net().parameters()).param_groups
    (theirs,) = torch.optim.AdamW(make_net().parameters()).param_groups
    assert {k: v for k, v in ours.items() if k != "params"} == {
        k: v for k, v in theirs.items() if k != "params"
    }


def test_weight_decay_is_multiplied_by_the_rate() -> None:
    # Without gradients to speak of, a step of torch's leaves 1 - 0.01 * 0.1 of a weight, of Composer's 0.9.
    from composer.optim import DecoupledAdamW

    left = {}
    for kind in (adamw, DecoupledAdamW):
        weight = nn.Parameter(torch.ones(2, 2))
        weight.grad = torch.zeros(2, 2)
        kind([weight], lr=0.01, weight_decay=0.1).step()
        left[kind] = weight[0, 0].item()
    assert left[adamw] == pytest.approx(1 - 0.01 * 0.1)
    assert left[DecoupledAdamW] == pytest.approx(0.9)


def test_groups_are_split_and_their_own_settings_kept() -> None:
    embedding, norm, linear = make_net()
    optimizer = adamw(
        [
            {"params": iter([embedding.weight, norm.weight]), "lr": 0.5},
            {"params": [linear.weight, linear.bias], "weight_decay": 0.3},
            {"params": norm.bias},
        ],
        decay_norms_and_biases=False,
        **SETTINGS,
    )
    found = [(len(g["params"]), g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [(1, 0.5, 0.1), (1, 0.5, 0.0), (2, 1e-2, 0.3), (1, 1e-2, 0.0)]
    assert optimizer.param_groups[0]["params"][0] is embedding.weight


def test_pairs_of_names_and_parameters_are_taken() -> None:
    net = make_net()
    optimizer = adamw(net.named_parameters(), decay_norms_and_biases=False, **SETTINGS)
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["0.weight", "2.weight"], ["1.weight", "1.bias", "2.bias"]]


def test_llm_foundry_builds_it_with_its_own_groups() -> None:
    from llmfoundry.utils.builders import build_optimizer

    model = make_model(no_bias=False)
    config = {
        "lr": 1e-3,
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
        "decay_norms_and_biases": False,
        "param_groups": [{"param_str_match": "wte", "lr": 1e-4}],
        "disable_grad": "wpe",
    }
    optimizer = build_optimizer(model, "adamw", copy.deepcopy(config))
    assert isinstance(optimizer, torch.optim.AdamW)
    groups = optimizer.param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1e-3, 0.1), (1e-3, 0.0), (1e-4, 0.1)]
    assert all(p.ndim > 1 for g in (groups[0], groups[2]) for p in g["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert groups[0]["betas"] == (0.9, 0.95)


def test_trains_and_resumes_in_the_trainer(tmp_path: Path) -> None:
    class Exempting(adamw):  # what the helper calls with a rate alone
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, lr=lr, weight_decay=0.1, decay_norms_and_biases=False)

    rows = make_rows(16, 16)
    save = {"save_folder": str(tmp_path), "save_interval": "1ba", "save_filename": "ba{batch}.pt"}
    whole = run(rows, optimizer=Exempting, max_duration="4ba", **save)
    resumed = run(rows, optimizer=Exempting, max_duration="4ba", load_path=str(tmp_path / "ba2.pt"))
    assert [len(t.state.optimizers[0].param_groups) for t in (whole, resumed)] == [2, 2]
    assert same(resumed.state.model.parameters(), whole.state.model.parameters())


def test_flattened_parameters_are_refused() -> None:
    flat = nn.Parameter(torch.zeros(12))
    flat._fsdp_flattened = True  # pyright: ignore
    with pytest.raises(ValueError, match="FSDP has flattened"):
        adamw([flat], decay_norms_and_biases=False)
    adamw([flat])
