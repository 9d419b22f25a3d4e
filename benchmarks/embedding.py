"""The mean of a patch's embeddings, three ways, forward and backward: lookup then mean, a bag, k lookups.

Each round times all of them once, in random order and in one process. Run it on an idle machine:

    OMP_NUM_THREADS=2 python -m benchmarks.embedding --out benchmarks/results

Shapes: B rows, P positions, K patch size, V vocabulary, D width.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pairs import Comparison, write_report
from patch_algorithm.patching import mean_of_patch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def lookup_then_mean(weight_VD: Tensor, ids_BPK: Tensor) -> Tensor:
    """The package's: one lookup of all tokens, whose mean is accumulated in float32."""
    return mean_of_patch(F.embedding(ids_BPK, weight_VD))


def bag(weight_VD: Tensor, ids_BPK: Tensor) -> Tensor:
    """``embedding_bag``, which makes no [B, P, K, D] tensor, and needs the weight instead of the module."""
    means_ND = F.embedding_bag(ids_BPK.flatten(0, 1), weight_VD, mode="mean")
    return means_ND.view(*ids_BPK.shape[:2], -1)


def lookups(weight_VD: Tensor, ids_BPK: Tensor) -> Tensor:
    """One lookup for each place in the patch, added up in float32."""
    first, *others = ids_BPK.unbind(-1)
    total_BPD = F.embedding(first, weight_VD).float()
    for ids_BP in others:
        total_BPD = total_BPD + F.embedding(ids_BP, weight_VD)
    return (total_BPD / ids_BPK.shape[-1]).to(weight_VD.dtype)


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "lookup then mean": lookup_then_mean,
    "embedding_bag": bag,
    "k lookups added up": lookups,
}


def step(way: Callable[[Tensor, Tensor], Tensor], weight_VD: Tensor, ids_BPK: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    weight_VD.grad = None
    start = time.perf_counter()
    way(weight_VD, ids_BPK).sum().backward()
    return time.perf_counter() - start


def compare(dtype: str, args: argparse.Namespace) -> list[Comparison]:
    """Times every way in turn, for one dtype."""
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(args.vocabulary, args.width, generator=generator).to(DTYPES[dtype])
    weight_VD.requires_grad_()
    ids_BPK = torch.randint(args.vocabulary, (args.rows, args.positions, args.k), generator=generator)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for index in range(args.pairs + 2):
        order = list(WAYS)
        random.shuffle(order)
        for name in order:
            taken = step(WAYS[name], weight_VD, ids_BPK)
            if index >= 2:  # The first rounds touch fresh memory.
                seconds[name].append(taken)
    ours, *others = WAYS
    return [Comparison(f"{dtype}: {ours} / {name}", None, seconds[ours], seconds[name]) for name in others]


def exactness(args: argparse.Namespace) -> str:
    """How far each way is from the float64 mean, in bf16."""
    weight_VD = torch.randn(args.vocabulary, args.width, generator=torch.Generator().manual_seed(1))
    weight_VD = weight_VD.bfloat16()
    ids_BPK = torch.randint(args.vocabulary, (1, 256, args.k))
    exact_BPD = F.embedding(ids_BPK, weight_VD.double()).mean(dim=-2)
    errors = {name: float((way(weight_VD, ids_BPK) - exact_BPD).abs().max()) for name, way in WAYS.items()}
    return "bf16: largest error, " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()) + "."


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=40, help="timed rounds (default: 40)")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--out", type=Path, help="folder for the dated report; printed if not given")
    return parser


def measure(args: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
    """All comparisons, and what is to be said of them."""
    random.seed(0)
    setting = (
        f"{args.rows} rows of {args.positions} positions, k={args.k}, vocabulary {args.vocabulary}, "
        f"width {args.width}; forward and backward."
    )
    return [c for dtype in DTYPES for c in compare(dtype, args)], [setting, exactness(args)]


def main() -> None:
    """Runs the comparison and reports it."""
    args = build_parser().parse_args()
    write_report("embedding", *measure(args), args.out)


if __name__ == "__main__":
    main()
