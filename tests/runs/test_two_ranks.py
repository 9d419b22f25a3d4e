"""Two processes under the composer launcher (gloo, CPU) train as one does with the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks import on_ranks
from tests.runs.short import relative_difference

DATA_PARALLEL = ["packed", "padded unevenly", "cut, in microbatches", "mds"]
SHARDED = ["fsdp, tied mpt", "fsdp, llama"]
Logged = dict[str, dict[str, list[float]]]

pytestmark = pytest.mark.launcher


def on_two_ranks(cases: list[str], corpus: Path, folder: Path) -> list[Logged]:
    """What each rank logged."""
    # FSDP2 needs no GPU; runs without an fsdp_config do not look at this.
    return on_ranks(2, "tests.runs.data_parallel", folder, str(corpus), *cases, FSDP_VERSION="2")


@pytest.fixture(scope="module")
def ranks(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Logged]:
    return on_two_ranks(DATA_PARALLEL + SHARDED, corpus, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", DATA_PARALLEL + SHARDED)
def test_two_ranks_equal_one(case: str, ranks: list[Logged], corpus: Path) -> None:
    from tests.runs.data_parallel import run_cases

    one = run_cases([case], corpus)[case]
    two = ranks[0][case]
    assert one["patch_level/stage"] == two["patch_level/stage"] == [0] * 3 + [1] * 3
    assert relative_difference(two["loss/train/total"], one["loss/train/total"]) < 1e-6
    assert relative_difference(two["patch_level/loss"], one["patch_level/loss"]) < 1e-6
    assert two["patch_level/token_accuracy"] == pytest.approx(one["patch_level/token_accuracy"])
    check_costs(two, one)
    assert two["sharded"] == [float(case in SHARDED)]
    assert one["sharded"] == [0.0]


def check_costs(two: dict[str, list[float]], one: dict[str, list[float]]) -> None:
    """What two ranks have computed is what one has, of whom each step took twice as many rows."""
    for name in ("positions", "raw tokens", "patch_monitor/compute_share_at_end"):
        assert two[name] == pytest.approx(one[name]), name
    # A sharded model is counted before it is sharded.
    assert two["patch_monitor/flops"] == pytest.approx(one["patch_monitor/flops"])
    assert len(one["positions"]) == 2
    assert one["positions"][1] > one["positions"][0] > 0


def test_both_ranks_log_the_same(ranks: list[Logged]) -> None:
    assert ranks[0] == ranks[1]
