"""What the trainer costs beside a bare torch loop that takes the same steps, measured in turn."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.study.cells import MAIN
from benchmarks.study.data import Corpus
from benchmarks.study.settings import CONTEXT, Settings
from benchmarks.study.training import CLIP, RowOrder, Rows, collate, make_model, make_optimizer, make_trainer
from patch_algorithm.loss import patch_cross_entropy
from patch_algorithm.patching import fold_rows, mean_of_patch, next_patch_targets

__all__ = ["measure"]


def measure(size: str, positions: int, corpus: Corpus, pairs: int) -> str:
    """Ratios of trainer steps to bare steps, token level and patch level, as text.

    Args:
        size: A key of the study's sizes.
        positions: Positions of a step.
        corpus: The data.
        pairs: Pairs of steps; at least 5.
    """
    torch.set_num_threads(1)
    settings = Settings(size, 1000, 1e-3, 1, positions=positions)
    lines = []
    for name, one in (("token", settings), ("patch, k=4", replace(settings, stages=MAIN))):
        ratios, bare_ms = _ratios(one, corpus, pairs)
        low, high = _interval(ratios)
        lines.append(
            f"{size}, {positions} positions, {name}: trainer / bare loop {np.median(ratios):.3f} "
            f"({low:.3f} to {high:.3f}), {pairs} pairs, bare step {bare_ms:.1f} ms"
        )
    return "\n".join(lines)


def _ratios(settings: Settings, corpus: Corpus, pairs: int) -> tuple[np.ndarray, float]:
    """CPU time of a step, so that what else the machine does counts as little as can be."""
    bare = _bare_steps(settings, corpus)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = make_trainer(settings, corpus, [])
        seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
        # A call of fit has a cost of its own, which a run pays once: five steps a call, their mean.
        for pair in range(pairs + 1):
            for side in ("trainer", "bare") if pair % 2 else ("bare", "trainer"):
                start = time.process_time()
                if side == "trainer":
                    trainer.fit(duration="5ba")
                else:
                    for _ in range(5):
                        next(bare)
                seconds[side].append((time.process_time() - start) / 5)
        trainer.close()
    trained, plain = (np.array(seconds[side][1:]) for side in ("trainer", "bare"))
    return trained / plain, float(np.median(plain) * 1e3)


def _bare_steps(settings: Settings, corpus: Corpus) -> Iterator[None]:
    """The same steps by hand: plain torch, and the two formulas of the method for patches."""
    model: Any = make_model(settings).model
    optimizer = make_optimizer(model, settings)
    rows = Rows(corpus.rows_RT)
    model.train()
    for step, indices in enumerate(RowOrder(settings, len(corpus.rows_RT))):
        k = next((k for k, end in settings.switches if step < end), 1)
        ids_BT = collate([rows[index] for index in indices])["input_ids"].view(-1, k * CONTEXT)
        optimizer.zero_grad(set_to_none=True)
        _loss(model, ids_BT, k).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        yield


def _loss(model: Any, ids_BT: Tensor, k: int) -> Tensor:
    """The loss as the trainer computes it: the model's own, or the package's pure functions."""
    if k == 1:
        return model(input_ids=ids_BT, labels=ids_BT).loss
    embeds_BPKD = model.get_input_embeddings()(fold_rows(ids_BT, k))
    logits_BPV = model(inputs_embeds=mean_of_patch(embeds_BPKD)).logits
    return patch_cross_entropy(logits_BPV, next_patch_targets(ids_BT, k)).mean


def _interval(ratios: np.ndarray) -> tuple[float, float]:
    picks = np.random.default_rng(0).integers(0, len(ratios), size=(10_000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return float(low), float(high)
