"""What a step costs, through the real trainer: patch against token, and after the switch against stock.

Two trainers live in one process and take steps in turn, so that whatever else the machine does hits
both alike; each pair gives one ratio. Run it on an idle machine:

    OMP_NUM_THREADS=2 python benchmarks/trainer_step.py --out benchmarks/results
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State, Trainer
from composer.models import ComposerModel, HuggingFaceModel
from pairs import Comparison, write_report
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from patch_algorithm import PatchLevel
from patch_algorithm.patching import fold_batch

NEVER = "1_000_000ba"


class StepTimer(Callback):
    """Wall time from asking for a batch to the end of the step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Stops it."""
        self.seconds.append(time.perf_counter() - self._start)


def mpt(vocabulary: int, positions: int) -> ComposerModel:
    """MPT with about 12M parameters at a vocabulary of 8k."""
    from llmfoundry.models.mpt.modeling_mpt import ComposerMPTCausalLM

    config: dict[str, Any] = dict(  # noqa: C408
        d_model=320,
        n_heads=5,
        n_layers=8,
        expansion_ratio=4,
        max_seq_len=positions,
        vocab_size=vocabulary,
        attn_config={"attn_impl": "torch", "alibi": True},
        learned_pos_emb=False,
        loss_fn="torch_crossentropy",
        use_train_metrics=False,
        tokenizer=None,
    )
    return ComposerMPTCausalLM(**config)


def llama(vocabulary: int, positions: int) -> ComposerModel:
    """Llama (SDPA attention, untied) with about 14M parameters at a vocabulary of 8k."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=320,
        intermediate_size=864,
        num_hidden_layers=8,
        num_attention_heads=5,
        max_position_embeddings=positions,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return HuggingFaceModel(LlamaForCausalLM(config), shift_labels=True)


def loader(rows: int, tokens: int, vocabulary: int) -> DataLoader:
    """One batch of random token rows, for ever."""
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    return DataLoader(data, batch_size=rows)  # pyright: ignore[reportArgumentType]


def trainer(model: ComposerModel, data: DataLoader, algorithms: list[Any]) -> tuple[Trainer, StepTimer]:
    """A trainer that takes one step per call of ``fit('1ba')``."""
    timer = StepTimer()
    made = Trainer(
        model=model,
        train_dataloader=data,
        optimizers=AdamW(model.parameters(), lr=1e-4),
        max_duration="0ba",
        algorithms=algorithms,
        callbacks=[timer],
        loggers=[],
        progress_bar=False,
        precision="fp32",
        device="cpu" if not torch.cuda.is_available() else "gpu",
        seed=1,
    )
    return made, timer


def compare(
    name: str,
    limit: float | None,
    left: tuple[Trainer, StepTimer],
    right: tuple[Trainer, StepTimer],
    pairs: int,
) -> Comparison:
    """Steps of ``left`` and ``right`` in turn, the order swapped every pair."""
    for warm, _ in (left, right):
        warm.fit(duration="2ba")
    for pair in range(pairs):
        for side in (left, right) if pair % 2 else (right, left):
            side[0].fit(duration="1ba")
        print(f"\r{name}: pair {pair + 1}/{pairs}", end="", flush=True)
    print()
    return Comparison(name, limit, left[1].seconds[2:], right[1].seconds[2:])


def flops(side: tuple[Trainer, StepTimer]) -> int:
    """Floating-point operations of one step, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        side[0].fit(duration="1ba")
    return counter.get_total_flops()


def measure(
    make: Callable[[int, int], ComposerModel], args: argparse.Namespace
) -> tuple[list[Comparison], list[str]]:
    """All comparisons for one model."""
    B, L, V, k = args.rows, args.positions, args.vocabulary, args.k
    name = make.__name__
    patch = trainer(make(V, L), loader(B, k * L, V), [PatchLevel(k=k, ratio=NEVER, seq_len=L)])
    token = trainer(make(V, L), loader(B, L, V), [])
    size = sum(p.numel() for p in token[0].state.model.parameters())
    results = [compare(f"{name}: patch step / token step, same positions", 1.05, patch, token, args.pairs)]
    notes = [
        f"{name}: {size / 1e6:.1f}M parameters, {B} rows of {L} positions, k={k}, vocabulary {V}.",
        f"{name}: FLOPs of a patch step / a token step: {flops(patch) / flops(token):.4f}.",
    ]
    batch = next(iter(loader(B, k * L, V)))
    start = time.perf_counter()
    for _ in range(100):
        fold_batch(batch, k)
    fold = (time.perf_counter() - start) / 100
    step = sorted(patch[1].seconds)[len(patch[1].seconds) // 2]
    notes.append(f"{name}: folding a batch takes {fold * 1e3:.3f} ms, {fold / step:.2%} of a patch step.")
    after = trainer(make(V, L), loader(B, L, V), [PatchLevel(k=k, ratio="1ba", seq_len=L)])
    results.append(
        compare(f"{name}: token step after the switch / stock", None, after, token_again(token), args.pairs)
    )
    for side in (patch, token, after):
        side[0].close()
    return results, notes


def token_again(side: tuple[Trainer, StepTimer]) -> tuple[Trainer, StepTimer]:
    """The same stock trainer, with an empty record."""
    side[1].seconds.clear()
    return side


def main() -> None:
    """Parses the command line and writes the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--models", nargs="+", default=["mpt", "llama"], choices=["mpt", "llama"])
    parser.add_argument("--out", type=Path, help="folder for the dated report; printed if not given")
    args = parser.parse_args()
    results: list[Comparison] = []
    notes: list[str] = []
    for make in (globals()[name] for name in args.models):
        compared, said = measure(make, args)
        results += compared
        notes += said
    write_report("trainer-step", results, notes, args.out)


if __name__ == "__main__":
    main()
