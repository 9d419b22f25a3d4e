"""What the K-target loss costs, forward and backward, against ordinary cross-entropy on the same logits.

Each round times all formulations once, in random order and in one process, so that whatever else the
machine does hits all of them alike; a pair is two formulations of one round. Run it on an idle machine:

    OMP_NUM_THREADS=1 python -m benchmarks.loss --out benchmarks/results

Shapes: N positions, V vocabulary, K targets per position.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.pairs import Comparison, write_report
from patch_algorithm.loss import patch_cross_entropy

Formulation = Callable[[Tensor, Tensor], Tensor]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OURS, ONE, CALLS, EXPANDED = "K-target loss", "one cross_entropy", "K cross_entropy calls", "expanded"
FUSED, COMPILED = "fused K-target loss", "compiled formula"
LIMITS = {ONE: 1.0, CALLS: 0.5}
_ELEMENTS = {"cpu": 2**24, "cuda": 2**28}


def ours(logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
    """The package's loss, by torch operations."""
    return patch_cross_entropy(logits_NV, targets_NK, kernel="torch").mean


def fused(logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
    """The package's loss, by the fused kernels."""
    return patch_cross_entropy(logits_NV, targets_NK, kernel="triton").mean


@torch.compile
def compiled(logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
    """The formula in plain torch, fused by the compiler."""
    logits_NV = logits_NV.float()
    return (logits_NV.logsumexp(1, keepdim=True) - logits_NV.gather(1, targets_NK)).mean()


def one(logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
    """An ordinary cross-entropy against the first target only: less work than was asked for."""
    return F.cross_entropy(logits_NV, targets_NK[:, 0])


def calls(logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
    """One ordinary cross-entropy per target, averaged, with a single backward pass."""
    return torch.stack([F.cross_entropy(logits_NV, t_N) for t_N in targets_NK.unbind(1)]).mean()


def expanded(logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
    """Every row of logits repeated for each of its targets."""
    return F.cross_entropy(logits_NV.repeat_interleave(targets_NK.shape[1], dim=0), targets_NK.flatten())


def inputs(vocabulary: int, dtype: torch.dtype, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random logits and targets; all vocabularies get about the same number of logits."""
    positions = max(1, (args.elements or _ELEMENTS[args.device]) // vocabulary)
    logits_NV = torch.randn(positions, vocabulary, device=args.device).to(dtype).requires_grad_()
    return logits_NV, torch.randint(0, vocabulary, (positions, args.k), device=args.device)


def step(loss: Formulation, logits_NV: Tensor, targets_NK: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    logits_NV.grad = None
    synchronize(logits_NV)
    start = time.perf_counter()
    loss(logits_NV, targets_NK).backward()
    synchronize(logits_NV)
    return time.perf_counter() - start


def synchronize(tensor: Tensor) -> None:
    """Waits for an accelerator's queue, so that the clock sees the work and not its launch."""
    if tensor.is_cuda:
        torch.cuda.synchronize()


def extra_buffers(loss: Formulation, logits_NV: Tensor, targets_NK: Tensor) -> float:
    """Peak memory of a pass beyond what was there before it, in units of the logits."""
    logits_NV.grad = None
    size = logits_NV.numel() * logits_NV.element_size()
    if logits_NV.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(logits_NV, targets_NK).backward()
        return (torch.cuda.max_memory_allocated() - before) / size
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loss(logits_NV, targets_NK).backward()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(itertools.accumulate(size_change for _, size_change in memory)) / size


def compare(vocabulary: int, dtype: str, args: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
    """Times every formulation in turn, for one vocabulary and dtype."""
    formulations = {OURS: ours, ONE: one, CALLS: calls}
    formulations |= {FUSED: fused} if args.device == "cuda" else {}
    formulations |= {COMPILED: compiled} if args.compiled else {}
    formulations |= {EXPANDED: expanded} if args.expanded else {}
    logits_NV, targets_NK = inputs(vocabulary, DTYPES[dtype], args)
    label = f"{vocabulary // 1000}k {dtype}, {len(logits_NV)} positions"
    buffers = {name: extra_buffers(loss, logits_NV, targets_NK) for name, loss in formulations.items()}
    seconds: dict[str, list[float]] = {name: [] for name in formulations}
    for index in range(args.pairs + 2):
        order = list(formulations)
        random.shuffle(order)
        for name in order:
            taken = step(formulations[name], logits_NV, targets_NK)
            if index >= 2:  # The first rounds touch fresh memory.
                seconds[name].append(taken)
        if index % 10 == 0:
            print(f"{label}: {index} of {args.pairs + 2} rounds", file=sys.stderr, flush=True)
    comparisons = [
        Comparison(f"{label}: {side} / {name}", LIMITS.get(name), seconds[side], seconds[name])
        for side in (OURS, FUSED)
        if side in formulations
        for name in formulations
        if name != side and (side, name) != (OURS, FUSED)
    ]
    held = ", ".join(f"{name} {n:.2f}" for name, n in buffers.items())
    return comparisons, [f"{label}: peak memory beyond the logits, in units of the logits: {held}."]


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def main() -> None:
    """Runs the comparison and reports it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=40, help="timed rounds (default: 40)")
    parser.add_argument("--k", type=int, default=4, help="targets per position (default: 4)")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 50_304, 128_000])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--elements",
        type=int,
        help="logits in all: positions times vocabulary (default: 2**24 on a CPU, 2**28 on a GPU)",
    )
    parser.add_argument("--device", default="cpu", choices=_ELEMENTS, help="cpu (default) or cuda")
    parser.add_argument(
        "--compiled", action="store_true", help="also time torch.compile of the plain formula"
    )
    parser.add_argument(
        "--expanded", action="store_true", help="also time cross_entropy on logits repeated K times"
    )
    parser.add_argument("--out", type=Path, help="folder for the dated report")
    args = parser.parse_args()
    if args.pairs < 1 or args.k < 1:
        parser.error("--pairs and --k must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA GPU, and torch sees none")
    torch.manual_seed(0)
    random.seed(0)
    load = os.getloadavg()[0]
    comparisons, notes = [], []
    for vocabulary in args.vocabulary:
        for dtype in args.dtype:
            more, noted = compare(vocabulary, dtype, args)
            comparisons += more
            notes += noted
    setting = (
        f"k={args.k}, {args.elements or _ELEMENTS[args.device]} logits, {_device_name(args.device)}, "
        f"{torch.get_num_threads()} thread(s); "
        f"load {load:.1f} at the start. Times are of forward and backward together."
    )
    write_report(f"loss-{args.device}", comparisons, [setting, *notes], args.out)


if __name__ == "__main__":
    main()
