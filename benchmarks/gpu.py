"""Speed, MFU and memory of patch stages on a GPU, through the real trainer, in bf16.

    python -m benchmarks.gpu --out benchmarks/results                    # one H100: 125M to 1B
    composer -n 8 -m benchmarks.gpu --table6 --out benchmarks/results    # the paper's sizes
    python -m benchmarks.gpu --dry-run                                   # a CPU: shows that all of it runs

MFU counts 6 FLOPs a position for each parameter outside the embedding, and 12 * layers * width * L besides.
With --table6 a step keeps its raw tokens as k grows, as in the paper; else it keeps its positions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from composer.utils import dist
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from benchmarks.pairs import write_report
from benchmarks.trainer_step import NEVER, StepTimer, loader
from patch_algorithm import PatchLevel

# Layers and width; the head is 64 wide. Those of the paper's Table 6 begin with 370M.
SIZES = {
    "tiny": (1, 64),
    "125M": (12, 768),
    "370M": (24, 1024),
    "780M": (36, 1280),
    "1B": (24, 2048),
    "1.3B": (24, 2048),
    "2.7B": (32, 2560),
}
ATTENTION = {"sdpa": "sdpa", "flash": "flash_attention_2"}
H100_FLOPS = 989e12


def make_trainer(size: str, attention: str, k: int, args: argparse.Namespace) -> tuple[Trainer, StepTimer]:
    """A trainer that stays in the patch stage; at token level for k=1."""
    layers, width = SIZES[size]
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=args.positions,
        attn_implementation=ATTENTION[attention],
        use_cache=False,
    )
    model = HuggingFaceModel(LlamaForCausalLM(config), shift_labels=True)
    algorithms = [PatchLevel(k=k, ratio=NEVER, seq_len=args.positions)] if k > 1 else []
    timer, on_gpu = StepTimer(), torch.cuda.is_available()
    sharded: dict[str, Any] = {"parallelism_config": {"fsdp": {}}} if args.table6 and not args.dry_run else {}
    made = Trainer(
        model=model,
        train_dataloader=loader(args.rows, k * args.positions, args.vocabulary),
        optimizers=AdamW(model.parameters(), lr=1e-4),
        max_duration="0ba",
        algorithms=algorithms,
        callbacks=[timer],
        progress_bar=False,
        precision="amp_bf16" if on_gpu else "fp32",
        device="gpu" if on_gpu else "cpu",
        device_train_microbatch_size=args.microbatch,
        seed=1,
        **sharded,
    )
    return made, timer


def flops_of_step(size: str, args: argparse.Namespace) -> float:
    """FLOPs of a rank's step, forward and backward."""
    layers, width = SIZES[size]
    weights = layers * (4 * width**2 + 3 * width * (width * 8 // 3 // 64 * 64)) + args.vocabulary * width
    positions = args.rows * args.positions
    return positions * (6 * weights + 12 * layers * width * args.positions)


def measure(size: str, attention: str, k: int, args: argparse.Namespace) -> tuple[str, float]:
    """A line of the table, and the raw tokens per second of all ranks."""
    if args.table6:  # the same raw tokens a step
        args = argparse.Namespace(**{**vars(args), "rows": max(1, args.rows // k)})
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    made, timer = make_trainer(size, attention, k, args)
    made.fit(duration=f"{args.steps + 3}ba")
    steps = np.array(timer.seconds[3:])
    low, high = np.quantile(steps, [0.25, 0.75])
    median = float(np.median(steps))
    speed = args.rows * k * args.positions * dist.get_world_size() / median
    mfu = f"{flops_of_step(size, args) / median / H100_FLOPS:.1%}" if torch.cuda.is_available() else "-"
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if torch.cuda.is_available() else "-"
    if args.profile is not None:
        write_profile(made, args.profile / f"{size}-{attention}-k{k}.txt")
    made.close()
    spread = f"{low * 1e3:.1f} to {high * 1e3:.1f}"
    return (
        f"{size}, {attention}, k={k}: {median * 1e3:.1f} ms a step ({spread}), {speed:,.0f} raw tokens/s, "
        + (f"MFU {mfu}, peak {peak} GB"),
        speed,
    )


def write_profile(made: Trainer, path: Path) -> None:
    """Where a step's time goes, by kernel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        made.fit(duration="2ba")
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    path.write_text(found.key_averages().table(sort_by=key, row_limit=40))


def cases(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Sizes, attentions and patch sizes; token level first, which the others are divided by."""
    for size in args.sizes:
        for attention in args.attention:
            for k in args.k:
                yield size, attention, k


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["125M", "370M", "780M", "1B"])
    parser.add_argument("--attention", nargs="+", choices=ATTENTION, default=["sdpa"])
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=32, help="rows of a rank's step")
    parser.add_argument("--microbatch", type=int, default=8)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=50_432)
    parser.add_argument("--steps", type=int, default=30, help="timed steps, after three")
    parser.add_argument(
        "--table6", action="store_true", help="the paper's sizes at k 1 and 4, sharded by FSDP"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny sizes, also without a GPU; times mean nothing"
    )
    parser.add_argument("--profile", type=Path, help="folder for a profile of each case")
    parser.add_argument("--out", type=Path, help="folder for the dated report; printed if not given")
    return parser


def main() -> None:
    """Measures every case and reports."""
    parser = build_parser()
    args = parser.parse_args()
    if args.table6:
        args.sizes, args.k, args.microbatch = ["370M", "780M", "1.3B", "2.7B"], [1, 4], 4
    if args.dry_run:
        args.sizes, args.k, args.rows, args.microbatch = ["tiny"], sorted({1, *args.k})[:3], 2, 1
        args.positions, args.vocabulary, args.steps, args.attention = 16, 128, 2, ["sdpa"]
    elif not torch.cuda.is_available():
        parser.error("there is no GPU here. --dry-run shows on a CPU that everything runs.")
    notes, token_level = [], 0.0
    for size, attention, k in cases(args):
        line, speed = measure(size, attention, k, args)
        token_level = speed if k == 1 else token_level
        notes.append(line + (f"; {speed / token_level:.2f} times token level." if token_level else "."))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    notes.append(f"{dist.get_world_size()} rank(s), {device}; MFU of {H100_FLOPS / 1e12:.0f} TFLOP/s.")
    if dist.get_global_rank() == 0:
        write_report("gpu-dry-run" if args.dry_run else "gpu", [], notes, args.out)


if __name__ == "__main__":
    main()
