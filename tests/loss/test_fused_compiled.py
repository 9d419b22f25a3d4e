"""The fused kernels compiled ahead of time: nothing is spilled, registers are few, accesses 16 bytes wide."""

from __future__ import annotations

import importlib.util
import os

import pytest

from patch_algorithm.loss.fused import WARPS

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile"
    ),
]
REGISTERS_OF_A_MULTIPROCESSOR = 65_536
# What may be narrower in a kernel whose rows start at multiples of 16 bytes. Forward: the k logits that are
# targets, and the group looked at again; backward: the k logits (and for fp32, whose instructions are named
# alike, the maximum, the sum and the gradient from above), and the k gradients.
NARROW = {
    "forward": {"bf16": {"LDG.E.U16": 2}, "fp16": {"LDG.E.U16": 2}, "fp32": {"LDG.E": 2}},
    "backward": {
        "bf16": {"LDG.E.U16": 1, "STG.E.U16": 1},
        "fp16": {"LDG.E.U16": 1, "STG.E.U16": 1},
        "fp32": {"LDG.E": 4, "STG.E": 1},
    },
}
slow = pytest.mark.slow
CASES = [
    pytest.param(name, dtype, architecture, id=f"{name}-{dtype}-sm_{architecture}", marks=marks)
    for name in ("forward", "backward")
    for dtype in ("bf16", "fp16", "fp32")
    for architecture in (80, 90, 100)
    for marks in [() if (dtype, architecture) == ("bf16", 90) else slow]
]


@pytest.mark.parametrize(("name", "dtype", "architecture"), CASES)
def test_no_spills_few_registers_and_wide_accesses(name: str, dtype: str, architecture: int) -> None:
    from benchmarks.kernels import compiled

    found = compiled(name, dtype, 50_304, architecture)
    assert (found.spilled, found.spill_accesses) == (0, 0)
    # Four blocks on a multiprocessor, so that 32 bytes of each thread are 32 KiB on their way.
    assert found.registers * 32 * WARPS * 4 <= REGISTERS_OF_A_MULTIPROCESSOR
    assert found.accesses["LDG.E.128"] >= 2
    assert name == "forward" or found.accesses["STG.E.128"] >= 2
    for access, most in NARROW[name][dtype].items():
        assert found.accesses[access] <= most, f"{found.accesses}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("weighted", [True, False])
def test_rows_that_start_anywhere_are_read_as_widely(name: str, architecture: int, weighted: bool) -> None:
    """A vocabulary of 50257: what comes before the first multiple of 16 bytes is taken apart."""
    from benchmarks.kernels import compiled

    found = compiled(name, "bf16", 50_257, architecture, weighted)
    assert (found.spilled, found.spill_accesses) == (0, 0)
    assert found.registers * 32 * WARPS * 4 <= REGISTERS_OF_A_MULTIPROCESSOR
    assert found.accesses["LDG.E.128"] >= 2
    assert name == "forward" or found.accesses["STG.E.128"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize(
    ("dtype", "vocabulary", "k", "apart"),
    [
        ("fp32", 1, 1, False),
        ("bf16", 7, 3, False),
        ("fp16", 300, 16, False),
        ("bf16", 262_144, 8, False),
        ("bf16", 50_257, 4, True),
        ("fp32", 50_304, 4, True),
    ],
)
def test_other_shapes_compile(name: str, dtype: str, vocabulary: int, k: int, apart: bool) -> None:
    """The interpreter knows no types, so that what it runs need not compile."""
    from benchmarks.kernels import compiled

    found = compiled(name, dtype, vocabulary, 90, weighted=k == 3, k=k, apart=apart)
    assert found.spilled == 0 or vocabulary < 256  # toys may spill


def test_the_sum_over_positions_compiles_without_spills() -> None:
    from benchmarks.kernels import compiled

    assert compiled("sum", "bf16", 50_304, 90).spilled == 0


def test_a_logit_is_moved_three_times_by_the_fused_kernels_and_33_times_by_torch() -> None:
    """Read, read, written: half of what one ordinary cross-entropy moves."""
    from benchmarks.kernels import moved

    _, _, *rows = moved()
    bf16 = {name.strip(): float(count) for _, name, count, *_ in (row.split("|") for row in rows)}
    assert bf16 == pytest.approx(
        {"fused kernels": 6, "torch, in chunks": 66, "one `F.cross_entropy`": 12, "k calls of it": 66},
        abs=0.1,
    )
