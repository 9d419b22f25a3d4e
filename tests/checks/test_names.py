"""Misspelt keys and names, with the whole key path and the nearest known one."""

from __future__ import annotations

from typing import Any

import pytest

from patch_algorithm.checks.names import Known, check_names

ALGORITHMS = Known({"patch_level": Known({"k": None, "ratio": None}), "alibi": None}, kind="algorithm")
TEXT = Known({"max_seq_len": None, "shuffle": None}, refuses=False)
KNOWN = Known(
    {
        "max_duration": None,
        "algorithms": ALGORITHMS,
        "variables": None,
        "eval_loader": Known({"name": None, "dataset": TEXT}),
        "optimizer": Known(
            {"name": None, "lr": None}, name_kind="optimizer", names=("adamw", "decoupled_adamw")
        ),
    }
)


@pytest.mark.parametrize(
    ("config", "check", "words"),
    [
        ({"max_duraton": "1ep"}, "unknown-key", "max_duraton is not a known key. Did you mean max_duration?"),
        (
            {"algorithms": {"patch_level": {"raito": 0.5}}},
            "unknown-key",
            "algorithms.patch_level.raito is not a known key. Did you mean ratio?",
        ),
        (
            {"algorithms": {"patch_lvl": {}}},
            "unknown-name",
            "algorithms.patch_lvl: no algorithm is registered as 'patch_lvl'. Did you mean patch_level?",
        ),
        (
            {"eval_loader": [{"name": "a"}, {"dataset": {"shufle": True}}]},
            "ignored-key",
            "eval_loader[1].dataset.shufle is not a known key here. Did you mean shuffle?",
        ),
        (
            {"optimizer": {"name": "adam"}},
            "unknown-name",
            "optimizer.name: no optimizer is registered as 'adam'. Did you mean adamw?",
        ),
        ({"optimizer": {"name": "lion"}}, "unknown-name", "no optimizer is registered as 'lion'."),
        ({"global_seed": 17}, "unknown-key", "global_seed is not a known key."),
        (
            {"optimizer": {"nme": "adamw", "lr": 1.0}},
            "missing-key",
            "optimizer.name is missing: the name of the optimizer. Did you mean optimizer.nme?",
        ),
        ({"optimizer": {"lr": 1.0}}, "missing-key", "optimizer.name is missing: the name of the optimizer."),
    ],
)
def test_misspelt(config: dict[str, Any], check: str, words: str) -> None:
    (found,) = check_names(config, KNOWN)
    assert found.id == check
    assert found.found.startswith(words) or words in found.found


def test_what_is_known_or_left_open_is_not_reported() -> None:
    config = {
        "max_duration": "1ep",
        "variables": {"anything": 1},
        "algorithms": {"patch_level": {"k": 4}, "alibi": {"whatever": 1}},
        "eval_loader": {"dataset": {"max_seq_len": 8, "of_my_own_loader": 1}},
    }
    assert check_names(config, KNOWN) == []


def test_advice_for_a_variable_of_ones_own() -> None:
    (found,) = check_names({"global_seed": 17}, KNOWN)
    assert "below `variables`" in found.fix
