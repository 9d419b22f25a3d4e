"""One run of the study: through ``PatchLevel`` and Composer's trainer, then the held-out loss.

Shapes: B rows of the prepared data, T tokens a row of it.
"""

from __future__ import annotations

import gc
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, Logger, State, Trainer
from composer.algorithms import GradientClipping
from composer.core import DataSpec
from composer.models import HuggingFaceModel
from composer.optim import ComposerScheduler, CosineAnnealingWithWarmupScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from benchmarks.study.data import Corpus
from benchmarks.study.evaluation import document_nats
from benchmarks.study.settings import CONTEXT, SIZES, VOCABULARY, Settings
from patch_algorithm import PatchLevel
from patch_algorithm.optim import AdamW, PerStageScheduler, WarmupStableDecay

__all__ = ["RowOrder", "Rows", "make_model", "make_optimizer", "make_trainer", "train"]

WARMUP, DECAY = "0.05dur", "0.2dur"
CLIP = 1.0


class Rows(Dataset[Tensor]):
    """Rows of the prepared data, one at a time."""

    def __init__(self, rows_RT: np.ndarray) -> None:
        self.rows_RT = rows_RT

    def __getitem__(self, index: int) -> Tensor:
        """Row ``index`` as int64."""
        return torch.from_numpy(self.rows_RT[index].astype(np.int64))

    def __len__(self) -> int:
        return len(self.rows_RT)


class RowOrder(Sampler[list[int]]):
    """The rows of each step of a run: an order that the seed alone decides, in steps of any size.

    Each pass over the data has a permutation of its own. Arms of one seed read the same sequence; a
    patch step takes more of it at a time.
    """

    def __init__(self, settings: Settings, rows: int) -> None:
        self.settings, self.rows = settings, rows

    def __iter__(self) -> Iterator[list[int]]:
        order = self._endless()
        for step in range(self.settings.steps):
            yield [next(order) for _ in range(self.settings.rows_of_step(step))]

    def __len__(self) -> int:
        return self.settings.steps

    def _endless(self) -> Iterator[int]:
        epoch = 0
        while True:
            yield from np.random.default_rng([self.settings.seed, epoch]).permutation(self.rows).tolist()
            epoch += 1


class Ledger(Callback):
    """Counts the positions that the model is given, and waits while a file says so."""

    def __init__(self, pause: Path | None) -> None:
        self.positions = 0
        self.loss = math.nan
        self._pause = pause

    def batch_start(self, state: State, logger: Logger) -> None:
        """Waits as long as the pause file exists."""
        while self._pause is not None and self._pause.exists():
            time.sleep(1.0)

    def before_forward(self, state: State, logger: Logger) -> None:
        """Counts the positions."""
        self.positions += state.batch["input_ids"].numel()

    def after_loss(self, state: State, logger: Logger) -> None:
        """Keeps the loss of the latest step."""
        if isinstance(state.loss, Tensor):
            self.loss = float(state.loss.detach())


def make_model(settings: Settings) -> HuggingFaceModel:
    """A Llama with tied embeddings; its weights are decided by the seed and the nudge."""
    size = SIZES[settings.size]
    torch.manual_seed(settings.seed)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.width,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.width // 16,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
    if settings.nudge:
        noise = torch.Generator().manual_seed(settings.seed)
        with torch.no_grad():
            for weight in llama.parameters():
                weight.mul_(1 + settings.nudge * torch.randn(weight.shape, generator=noise))
    return HuggingFaceModel(llama, shift_labels=True)


def make_optimizer(model: HuggingFaceModel, settings: Settings) -> AdamW:
    """AdamW as in most papers on language models."""
    return AdamW(
        model.parameters(),
        lr=settings.rate,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        decay_norms_and_biases=False,
    )


def make_trainer(
    settings: Settings,
    corpus: Corpus,
    callbacks: list[Callback],
    model: HuggingFaceModel | None = None,
) -> Trainer:
    """The trainer of a run, which has not started."""
    model = model or make_model(settings)
    loader = DataLoader(
        Rows(corpus.rows_RT),
        batch_sampler=RowOrder(settings, len(corpus.rows_RT)),
        collate_fn=collate,
    )
    return Trainer(
        model=model,
        train_dataloader=DataSpec(loader, get_num_tokens_in_batch=lambda batch: batch["input_ids"].numel()),
        max_duration=f"{settings.steps}ba",
        optimizers=make_optimizer(model, settings),
        schedulers=_scheduler(settings),
        algorithms=[_patch_level(settings), GradientClipping("norm", clipping_threshold=CLIP)],
        callbacks=callbacks,
        loggers=[],
        progress_bar=False,
        precision="fp32",
        device="cpu",
        device_train_microbatch_size=settings.positions // CONTEXT,
        seed=settings.seed,
    )


def collate(rows: list[Tensor]) -> dict[str, Tensor]:
    """Stacks rows to a batch ``[B, T]``."""
    ids_BT = torch.stack(rows)
    return {"input_ids": ids_BT, "labels": ids_BT}


def train(
    settings: Settings, corpus: Corpus, pause: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains and evaluates one run.

    Args:
        settings: What to train.
        corpus: The data.
        pause: While this file exists, the run waits between two steps.
        say: Takes a line of progress.

    Returns:
        What was measured, fit for JSON; ``bits_per_byte`` is ``None`` if the loss is not finite.
    """
    started, cpu = time.time(), time.process_time()
    ledger = Ledger(pause)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = make_trainer(settings, corpus, [ledger])
        trainer.fit()
    trained = time.process_time()
    raw_tokens = int(trainer.state.timestamp.token.value)
    nats = document_nats(trainer.state.model.model, corpus)
    trainer.close()
    del trainer
    gc.collect()
    result = _result(settings, corpus, ledger, raw_tokens, nats) | {
        "seconds": round(time.time() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "cpu_seconds_training": round(trained - cpu, 1),
    }
    say(f"{settings.identity} {settings.to_row()}: {result['bits_per_byte']} bits per byte")
    return result


def _result(
    settings: Settings, corpus: Corpus, ledger: Ledger, raw_tokens: int, nats: np.ndarray
) -> dict[str, Any]:
    size = SIZES[settings.size]
    total = float(np.sum(nats))
    finite = math.isfinite(total)
    return {
        "bits_per_byte": total / math.log(2) / sum(corpus.documents["bytes"]) if finite else None,
        "nats_per_token": total / (len(corpus.held_out) - 1) if finite else None,
        "last_loss": ledger.loss if math.isfinite(ledger.loss) else None,
        "steps": settings.steps,
        "updates_after_switch": settings.updates_after_switch,
        "parameters": size.parameters,
        "raw_tokens": raw_tokens,
        "epochs": raw_tokens / corpus.rows_RT.size,
        "positions": ledger.positions,
        "flops": ledger.positions * size.flops_per_position,
        "document_nats": [float(f"{value:.7g}") for value in nats] if finite else None,
    }


def _patch_level(settings: Settings) -> PatchLevel:
    if not settings.stages:
        return PatchLevel(k=1, seq_len=CONTEXT)  # cuts the rows
    return PatchLevel(
        stages=[{"k": k, "until": f"{end}ba"} for k, end in settings.switches],
        seq_len=CONTEXT,
        patch_inputs=settings.patch_inputs,
        patch_targets=settings.patch_targets,
        on_switch=settings.on_switch,
    )


def _scheduler(settings: Settings) -> ComposerScheduler:
    if settings.schedule == "wsd":
        return WarmupStableDecay(t_warmup=WARMUP, t_decay=DECAY)
    cosine = CosineAnnealingWithWarmupScheduler(t_warmup=WARMUP, alpha_f=0.0)
    return PerStageScheduler(cosine) if settings.schedule == "cosine_per_stage" else cosine
