"""What a step costs, through the real trainer: patch against token, and after the switch against stock.

Two trainers live in one process and take steps in turn, so that whatever else the machine does hits
both alike; each pair gives one ratio. Run it on an idle machine:

    OMP_NUM_THREADS=2 python -m benchmarks.trainer_step --out benchmarks/results
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composer import Callback, DataSpec, Logger, State, Trainer
from composer.models import ComposerModel, HuggingFaceModel
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from benchmarks.pairs import Comparison, write_report
from patch_algorithm import PatchLevel
from patch_algorithm.patching import fold_batch

NEVER = "1_000_000ba"
Make = Callable[[int, int], ComposerModel]


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


def mpt(vocabulary: int, positions: int, **changes: Any) -> ComposerModel:
    """MPT with about 12M parameters at a vocabulary of 8k; ``changes`` are of its config."""
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
    return ComposerMPTCausalLM(**(config | changes))


def tiny(vocabulary: int, positions: int) -> ComposerModel:
    """MPT that is no model at all, to see that everything runs."""
    return mpt(vocabulary, positions, d_model=16, n_heads=2, n_layers=1)


def twice(vocabulary: int, positions: int) -> ComposerModel:
    """MPT of the width of :func:`mpt` with twice the layers."""
    return mpt(vocabulary, positions, n_layers=16)


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


def trainer(
    model: ComposerModel,
    data: DataLoader | DataSpec,
    algorithms: list[Any],
    microbatch_rows: int | None = None,
) -> tuple[Trainer, StepTimer]:
    """A trainer that takes one step per call of ``fit('1ba')``, in one microbatch if not said."""
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
        device_train_microbatch_size=microbatch_rows,
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


def patch_side(make: Make, args: argparse.Namespace, k: int) -> tuple[Trainer, StepTimer]:
    """A trainer that stays in the patch stage."""
    B, L, V = args.rows, args.positions, args.vocabulary
    return trainer(make(V, L), loader(B, k * L, V), [PatchLevel(k=k, ratio=NEVER, seq_len=L)])


def token_side(make: Make, args: argparse.Namespace) -> tuple[Trainer, StepTimer]:
    """A stock trainer on as many positions."""
    return trainer(
        make(args.vocabulary, args.positions), loader(args.rows, args.positions, args.vocabulary), []
    )


def patch_against_token(make: Make, args: argparse.Namespace, k: int) -> tuple[list[Comparison], list[str]]:
    """A patch step against a token step, its FLOPs and its folding."""
    B, L, V, name = args.rows, args.positions, args.vocabulary, make.__name__
    patch, token = patch_side(make, args, k), token_side(make, args)
    size = sum(p.numel() for p in token[0].state.model.parameters())
    label = f"{name}: patch step, k={k} / token step, same positions"
    results = [compare(label, 1.02, patch, token, args.pairs)]
    batch = next(iter(loader(B, k * L, V)))
    start = time.perf_counter()
    for _ in range(100):
        fold_batch(batch, k)
    fold = (time.perf_counter() - start) / 100
    step = sorted(patch[1].seconds)[len(patch[1].seconds) // 2]
    notes = [
        f"{name}, k={k}: {size / 1e6:.1f}M parameters, {B} rows of {L} positions, vocabulary {V}; FLOPs of a "
        f"patch step / a token step {flops(patch) / flops(token):.4f}; folding a batch {fold * 1e3:.3f} ms, "
        f"{fold / step:.2%} of a patch step."
    ]
    for side in (patch, token):
        side[0].close()
    return results, notes


def after_switch(make: Make, args: argparse.Namespace) -> Comparison:
    """A token step after the switch against stock."""
    B, L, V = args.rows, args.positions, args.vocabulary
    after = trainer(make(V, L), loader(B, L, V), [PatchLevel(k=4, ratio="1ba", seq_len=L)])
    stock = token_side(make, args)
    found = compare(f"{make.__name__}: token step after the switch / stock", None, after, stock, args.pairs)
    for side in (after, stock):
        side[0].close()
    return found


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
        compared, said = patch_against_token(make, args, args.k)
        results += [*compared, after_switch(make, args)]
        notes += said
    write_report("trainer-step", results, notes, args.out)


if __name__ == "__main__":
    main()
