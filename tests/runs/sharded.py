"""Trains small models in every way that Composer shards them, on however many ranks there are.

Started by the launcher as ``python -m tests.runs.sharded OUTPUT CORPUS CASE...``. Composer's first
FSDP asks for the current CUDA device; here, in this process of the tests alone, the answer is the CPU.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerModel
from composer.utils import dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig

from patch_algorithm import PatchLevel
from patch_algorithm.monitoring import HistoryLogger, PatchMonitor, StageReport
from patch_algorithm.monitoring.history import read
from patch_algorithm.monitoring.stage_recorder import StageRecorder
from tests.ranks import write_down
from tests.runs.families import plain_model
from tests.runs.short import make_model, make_padded_rows, make_rows, make_trainer
from tests.support import VOCABULARY, metrics

GLOBAL_BATCH = 4
LR = 0.1
LOGGED = ("loss/train/total", "patch_level/loss", "patch_level/stage", "metrics/train/LanguageCrossEntropy")

FULLY = {"sharding_strategy": "FULL_SHARD", "mixed_precision": "PURE", "state_dict_type": "full"}
MODES: dict[str, tuple[str, dict[str, Any]] | None] = {
    "ddp": None,
    "fsdp2": ("2", FULLY),
    "fsdp2 sharded": ("2", FULLY | {"state_dict_type": "sharded"}),
    "fsdp2 checkpointing": ("2", FULLY | {"activation_checkpointing": True}),
    "fsdp1": ("1", FULLY | {"use_orig_params": True}),
    "fsdp1 flat": ("1", FULLY | {"use_orig_params": False}),
    "fsdp1 sharded": ("1", FULLY | {"state_dict_type": "sharded"}),
    "fsdp1 grad op": ("1", FULLY | {"sharding_strategy": "SHARD_GRAD_OP"}),
    "fsdp1 hybrid": (
        "1",
        FULLY
        | {
            "sharding_strategy": "HYBRID_SHARD",
            "data_parallel_replicate_degree": 2,
            "data_parallel_shard_degree": 2,
        },
    ),
    "fsdp1 checkpointing": (
        "1",
        FULLY | {"activation_checkpointing": True, "activation_checkpointing_reentrant": False},
    ),
    "fsdp1 reentrant": (
        "1",
        FULLY | {"activation_checkpointing": True, "activation_checkpointing_reentrant": True},
    ),
}
"""The value of ``FSDP_VERSION`` and the ``fsdp_config`` of each mode."""


def mpt_model(_: Path, **changes: Any) -> ComposerModel:
    return make_model(n_layers=2, **changes)


def llama(folder: Path, own_embedding: bool = False, **changes: Any) -> ComposerModel:
    """A tiny Llama with a context of 8; its embedding is a unit of sharding of its own if asked for."""
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=94,
        eos_token_id=94,
        **changes,
    ).save_pretrained(config := folder / f"llama{dist.get_global_rank()}")
    torch.manual_seed(0)
    model: Any = plain_model(
        {"name": "hf_causal_lm", "pretrained_model_name_or_path": str(config), "pretrained": False}, folder
    )
    if own_embedding:
        model.model.get_input_embeddings()._fsdp_wrap = True
    return model


MODELS: dict[str, Callable[[Path], ComposerModel]] = {
    "mpt": mpt_model,
    "mpt untied": lambda folder: mpt_model(folder, tie_word_embeddings=False),
    "mpt dropout": lambda folder: mpt_model(folder, resid_pdrop=0.1),
    "llama": llama,
    "llama tied": lambda folder: llama(folder, tie_word_embeddings=True),
    "llama own embedding": lambda folder: llama(folder, own_embedding=True),
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "carry": {"k": 4, "ratio": "3ba"},
    "reset": {"k": 4, "ratio": "3ba", "on_switch": "reset"},
    "stages": {"stages": [{"k": 8, "until": "2ba"}, {"k": 2, "until": "4ba"}], "on_switch": "reset"},
    "scaled": {"k": 2, "ratio": "3ba", "scale_microbatch": True},
    "token level": {"k": 1},
}
RESUMED_FROM = (2, 3, 4)
"""Before, at and after the switch."""


def parallelism(mode: str) -> dict[str, Any]:
    """Trainer arguments of a mode; sets ``FSDP_VERSION``, which Composer reads when a trainer is made."""
    chosen = MODES[mode]
    if chosen is None:
        return {}
    os.environ["FSDP_VERSION"], config = chosen
    return {"parallelism_config": {"fsdp": dict(config)}}


def trainer_of(case: str, corpus: Path, optimizer: Any, **changes: Any) -> Trainer:
    """An unstarted trainer of ``mode / model / algorithm``."""
    mode, model, algorithm = case.split(" / ")
    rows = make_rows(24, 16) if model.startswith("llama") else make_padded_rows(24, 16)
    made = MODELS[model](corpus)
    watch_embedding(made)
    arguments = parallelism(mode)  # first: it says which FSDP this is
    return make_trainer(
        rows,
        [PatchLevel(**ALGORITHMS[algorithm])],
        model=made,
        max_duration="6ba",
        batch=GLOBAL_BATCH // dist.get_world_size(),
        device_train_microbatch_size=1,
        optimizer=optimizer,
        lr=LR / dist.get_world_size() if sums_gradients(mode) else LR,
        **arguments,
        **changes,
    )


EMBEDDED: set[int] = set()


def watch_embedding(model: Any) -> None:
    """Notes what a hook of the user's sees that was there before the model is wrapped, as NEFTune's."""
    EMBEDDED.clear()
    embedding = model.model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, args, output: EMBEDDED.add(output.dim()))


def sums_gradients(mode: str) -> bool:
    """Whether gradients come out as sums over ranks, where they should be means.

    FSDP2 asks for the mean in its reduce-scatter, which gloo, unlike NCCL, takes for a sum without a word.
    With momentum, a step is proportional to the gradient, so that a smaller rate mends it.
    """
    return mode.startswith("fsdp2") and not torch.cuda.is_available()


def units(model: nn.Module) -> dict[str, float]:
    """How the model is sharded."""
    embedding: Any = next(m for m in model.modules() if getattr(m, "num_embeddings", None))
    names = [type(module).__name__ for module in model.modules()]
    return {
        "sharded tensors": float(sum(isinstance(p, DTensor) for p in model.parameters())),
        "fsdp1 units": float(sum(isinstance(m, FullyShardedDataParallel) for m in model.modules())),
        "checkpointed": float(sum("CheckpointWrapper" in name for name in names)),
        "own embedding": float(
            isinstance(embedding, FullyShardedDataParallel) or "FSDP" in type(embedding).__name__
        ),
    }


def logged(trainer: Trainer) -> dict[str, Any]:
    return {name: metrics(trainer, name) for name in LOGGED}


def fitted(case: str, corpus: Path) -> dict[str, Any]:
    trainer = trainer_of(case, corpus, partial(torch.optim.SGD, momentum=0.9))
    found = units(trainer.state.model)
    trainer.fit()
    trainer.close()
    return logged(trainer) | found | {"dimensions": sorted(EMBEDDED)}


def counted(trainer: Trainer, history: Path) -> dict[str, Any]:
    """What the callbacks of this package have counted: of each stage, and in the file of the run."""
    record = StageRecorder.of(trainer.state).record
    found: dict[str, Any] = {
        "stages": [
            [stage.name, stage.total.steps, stage.total.tokens, stage.total.positions, stage.total.flops]
            for stage in record.stages
        ],
        "losses": [loss for stage in record.stages for loss in stage.losses.means],
        "before": record.before.steps,
    }
    if dist.get_global_rank() == 0:
        steps = read(history).steps
        found["history"] = [[line.at.step, line.at.positions, line.at.flops] for line in steps]
    return found


def resumed(case: str, corpus: Path) -> dict[str, Any]:
    """A run that saves every batch, and runs that go on from its checkpoints, with all our callbacks."""
    sharded = " sharded" in case
    folder = corpus / case.replace(" ", "_").replace("/", "-")
    adam = torch.optim.AdamW
    history = folder / "history.jsonl"

    def fit(**changes: Any) -> dict[str, Any]:
        callbacks = [PatchMonitor(), StageReport()]
        loggers = [InMemoryLogger(), HistoryLogger(str(history))]
        trainer = trainer_of(case, corpus, adam, callbacks=callbacks, loggers=loggers, **changes)
        trainer.fit()
        trainer.close()
        return logged(trainer) | counted(trainer, history)

    results: dict[str, Any] = {"whole": fit(save_folder=str(folder), save_interval="1ba")}
    for batch in RESUMED_FROM:
        path = folder / (f"ep0-ba{batch}" if sharded else f"ep0-ba{batch}-rank0.pt")
        results[str(batch)] = fit(load_path=str(path))
    return results


def joined(case: str, corpus: Path) -> dict[str, Any]:
    """A run without our callbacks, and one with them that goes on from its checkpoint of the switch."""
    folder = corpus / f"joined {case}".replace(" ", "_").replace("/", "-")
    trainer = trainer_of(case, corpus, torch.optim.AdamW, save_folder=str(folder), save_interval="1ba")
    trainer.fit()
    trainer.close()
    again = trainer_of(
        case,
        corpus,
        torch.optim.AdamW,
        callbacks=[PatchMonitor(), StageReport()],
        load_path=str(folder / "ep0-ba3"),
        load_ignore_keys=["state/callbacks/StageRecorder/*"],
    )
    again.fit()
    again.close()
    record = StageRecorder.of(again.state).record
    losses = [loss for stage in record.stages for loss in stage.losses.means]
    return {
        "whole": logged(trainer),
        "again": logged(again),
        "losses": losses,
        "before": record.before.steps,
        "share": record.compute_share(),
    }


def run_cases(names: list[str], corpus: Path, output: str) -> None:
    """Writes down what each case logged, by name; a case that fails leaves its error."""
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        action, case = name.split(": ")
        try:
            results[name] = {"fit": fitted, "resume": resumed, "join": joined}[action](case, corpus)
        except Exception:
            results[name] = {"error": traceback.format_exc()}
        write_down(output, results)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        cpu: Any = lambda: torch.device("cpu")  # noqa: E731
        torch.cuda.current_device = cpu
    dist.initialize_dist("cpu")  # llm-foundry asks for it while it builds the first model
    run_cases(sys.argv[3:], Path(sys.argv[2]), sys.argv[1])
