"""Whole runs of patch-level training against stock llm-foundry on the same tokens, data loading included.

Ours reads rows of k * L tokens from MDS, in patches for two thirds of its steps; stock reads the same number
of tokens a step in rows of L. Microbatches have the same number of positions on both sides and in both
stages: on a CPU a forward of four times the positions takes more than four times as long, because the system
must hand out memory for larger logits. A pair is one run of each. A run's time is that of its steps; in the
place of its first step, in which loaders start, stands the mean of the others of its stage.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer import DataSpec
from composer.models import ComposerModel
from llmfoundry.data.dataloader import build_dataloader

from benchmarks.loader import write_data
from benchmarks.pairs import Comparison
from benchmarks.trainer_step import trainer
from patch_algorithm import PatchLevel

__all__ = ["measure"]


def _data(name: str, folder: Path, tokenizer: Any, rows: int, row_tokens: int) -> DataSpec:
    dataset = {"local": str(folder), "split": "train", "shuffle": True, "max_seq_len": row_tokens}
    cfg: dict[str, Any] = {"name": name, "dataset": dataset, "drop_last": True, "num_workers": 0}
    cfg |= {"prefetch_factor": None, "persistent_workers": False, "pin_memory": False}
    return build_dataloader(cfg, tokenizer, rows)


def _run(
    model: ComposerModel, data: DataSpec, algorithms: list[Any], steps: int, microbatch_rows: int
) -> list[float]:
    made, timer = trainer(model, data, algorithms, microbatch_rows)
    made.fit(duration=f"{steps}ba")
    made.close()
    return timer.seconds


def _of_stages(timer: list[float], ends: list[int]) -> float:
    """Seconds of a run without what its start took."""
    first = timer[: ends[0]]
    start = sum(first[1:]) / (len(first) - 1) * len(first)
    return start + sum(timer[ends[0] :])


def measure(
    make: Callable[[int, int], ComposerModel], args: argparse.Namespace
) -> tuple[list[Comparison], list[str]]:
    """Runs of both kinds in turn, on one model of each."""
    B, L, V, k, steps = args.rows, args.positions, args.vocabulary, args.k, args.steps
    switch = 2 * steps // 3
    ours_model, stock_model = make(V, L), make(V, L)
    left: list[float] = []
    right: list[float] = []
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as stock:
        tokenizer = write_data(Path(ours), B * steps, k * L, V)
        write_data(Path(stock), B * k * steps, L, V)
        for pair in range(args.pairs + 1):
            algorithm = PatchLevel(k=k, ratio=f"{switch}ba", seq_len=L, rehearse_switch=False)
            patches = _data("pile", Path(ours), tokenizer, B, k * L)
            tokens = _data("text", Path(stock), tokenizer, B * k, L)
            left.append(_of_stages(_run(ours_model, patches, [algorithm], steps, B), [switch]))
            right.append(_of_stages(_run(stock_model, tokens, [], steps, B), [steps]))
            print(f"\rwhole runs: pair {pair}/{args.pairs}", end="", flush=True)
    print()
    size = sum(parameter.numel() for parameter in stock_model.parameters())
    name = f"{make.__name__}: whole run, k={k}, ratio 2/3 / stock llm-foundry, same tokens"
    notes = [
        f"whole runs: {make.__name__}, {size / 1e6:.1f}M parameters, {steps} steps of {B * k * L} tokens, in "
        f"rows of {k * L} and of {L}; {switch} patch steps; microbatches of {B * L} positions. "
        "Loaders `pile` and `text`, no workers."
    ]
    return [Comparison(name, 0.51, left[1:], right[1:])], notes
