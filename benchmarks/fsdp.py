"""What part of a sharded step does not shrink with the positions: gathers, gradients' scatter, the optimizer.

Two ranks (gloo, CPU) train a Llama that FSDP2 shards by layer. A step of P positions takes about a + b * P:
what is gathered, scattered and updated is in a, whatever the batch holds. Patches of k tokens leave P / k
positions in rows that fit the context already, so the share of a grows. Run it on an idle machine:

    OMP_NUM_THREADS=1 python -m benchmarks.fsdp --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from benchmarks.pairs import write_report

RANKS = 2


def sharded(args: argparse.Namespace) -> tuple[LlamaForCausalLM, list[Any]]:
    """A Llama in shards, and its sharded modules."""
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=args.width * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        max_position_embeddings=max(args.positions),
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    mesh = init_device_mesh("cpu", (RANKS,))
    modules: list[Any] = [*model.model.layers, model]
    for module in modules:
        fully_shard(module, mesh=mesh)
    return model, modules


def timed_step(model: Any, optimizer: torch.optim.Optimizer, ids_BT: torch.Tensor) -> tuple[float, float]:
    """Seconds of forward and backward, and of the update."""
    dist.barrier()
    start = time.perf_counter()
    model(input_ids=ids_BT, labels=ids_BT).loss.backward()
    middle = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    return middle - start, time.perf_counter() - middle


def timed_gather(modules: list[Any]) -> float:
    """Seconds of one gather of all weights; a step takes two, and one scatter of as many gradients."""
    dist.barrier()
    start = time.perf_counter()
    for module in modules:
        module.unshard()
        module.reshard()
    return time.perf_counter() - start


def on_rank(rank: int, folder: str, args: argparse.Namespace) -> None:
    """Takes all times; the first rank writes them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    model, modules = sharded(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    found: dict[str, Any] = {"gather": [], "update": [], "steps": {P: [] for P in args.positions}}
    for turn in range(args.turns + 1):
        for P in args.positions:
            model_seconds, update = timed_step(model, optimizer, torch.randint(args.vocabulary, (1, P)))
            if turn:  # The first makes the optimizer's state.
                found["steps"][P].append(model_seconds + update)
                found["update"].append(update)
        if turn:
            found["gather"].append(timed_gather(modules))
    found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def notes_of(found: dict[str, Any]) -> list[str]:
    """What the times say."""
    steps = {int(P): float(np.median(seconds)) for P, seconds in found["steps"].items()}
    slope, fixed = np.polyfit(list(steps), list(steps.values()), 1)
    update, gather = float(np.median(found["update"])), float(np.median(found["gather"]))
    notes = [
        f"{found['parameters'] / 1e6:.1f}M parameters, {RANKS} gloo ranks, {len(found['gather'])} turns.",
        f"a step of P positions a rank: {fixed * 1e3:.1f} ms + P * {slope * 1e3:.4f} ms (least squares); the "
        f"update takes {update * 1e3:.1f} ms, one gather of all weights {gather * 1e3:.1f} ms.",
    ]
    return notes + [
        f"P={P}: {seconds * 1e3:.1f} ms, of which the part that does not shrink is {fixed / seconds:.0%}, "
        f"the update and two gathers {(update + 2 * gather) / seconds:.0%}."
        for P, seconds in steps.items()
    ]


def main() -> None:
    """Starts the ranks and reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--positions", type=int, nargs="+", default=[64, 128, 256, 512], help="a rank and step"
    )
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--out", type=Path, help="folder for the dated report; printed if not given")
    args = parser.parse_args()
    if len(set(args.positions)) < 2 or args.turns < 1:
        parser.error("--positions needs two different numbers for a line through them, --turns at least 1")
    with tempfile.TemporaryDirectory() as folder:
        start_processes(on_rank, (folder, args), RANKS, start_method="spawn")
        found = json.loads(Path(folder, "found.json").read_text())
    write_report("fsdp", [], notes_of(found), args.out)


if __name__ == "__main__":
    main()
