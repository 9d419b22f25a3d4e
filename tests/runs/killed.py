"""Runs that are killed (SIGKILL) and resumed, each in a process of its own.

usage: python -m tests.runs.killed OUTPUT CORPUS CASE...

For each case a child trains the whole run, another one is killed on the way, and a third one resumes
it with ``autoresume`` or from an older checkpoint. Children are forked, so that llm-foundry is imported
once; what they log is written down step by step, so that it survives them.

There is no dropout: where a streaming dataset resumes by itself in the middle of an epoch, Composer 0.32
does not restore the state of its random numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Callback, Event, State
from composer.loggers import Logger
from llmfoundry import registry

from tests.support import config, mpt, train

BATCHES = 8
ROW, BATCH = 32, 4
_TOKENS, _SAMPLES = ROW * BATCH, BATCH


@dataclass(frozen=True)
class Case:
    """A run of eight batches, and where it dies.

    Attributes:
        patch_level: Arguments of the algorithm.
        kill: The batch before which the process is killed.
        changes: Further top-level keys of the configuration.
        from_batch: The checkpoint to resume from; by default the latest one, by ``autoresume``.
    """

    patch_level: dict[str, Any]
    kill: int
    changes: dict[str, Any] = field(default_factory=dict)
    from_batch: int | None = None


_HALF = {"k": 4, "ratio": 0.5}
_LIST = {"stages": [{"k": 8, "until": "2ba"}, {"k": 4, "until": "5ba"}], "on_switch": "reset"}
_CONSTANT = {**_HALF, "constant_compute": True}
_DOWN = {"stages": [{"k": k, "until": f"{2 * end}ba"} for end, k in enumerate((8, 4, 2), start=1)]}


def _run_of(amount: int, unit: str) -> dict[str, Any]:
    # Composer wants warm-ups, even none, in the unit of the run.
    scheduler = {"name": "constant_with_warmup", "t_warmup": f"0{unit}"}
    return {"max_duration": f"{amount}{unit}", "scheduler": scheduler}


_EPOCHS = _run_of(2, "ep")  # of the small corpus: four batches each
CASES: dict[str, Case] = {
    "before the switch": Case(_HALF, kill=2),
    "at the switch": Case(_HALF, kill=4),
    "after the switch": Case(_HALF, kill=6),
    "at the switch, reset": Case({**_HALF, "on_switch": "reset"}, kill=4),
    "after the switch, reset": Case({**_HALF, "on_switch": "reset"}, kill=5),
    "stages, at the first boundary": Case(_LIST, kill=2),
    "stages, at the second boundary": Case(_LIST, kill=5),
    "stages, after it": Case(_LIST, kill=6),
    "older checkpoint": Case(_HALF, kill=6, from_batch=3),
    "older checkpoint, at the switch": Case(_HALF, kill=6, from_batch=4),
    "samples": Case({"k": 4, "ratio": f"{4 * _SAMPLES}sp"}, 4, _run_of(BATCHES * _SAMPLES, "sp")),
    "tokens": Case({"k": 4, "ratio": f"{4 * _TOKENS}tok"}, 5, _run_of(BATCHES * _TOKENS, "tok")),
    "tokens in a run of batches": Case({"k": 4, "ratio": f"{3 * _TOKENS + 1}tok"}, 4),
    "batches in a run of tokens": Case({"k": 4, "ratio": "3ba"}, 3, _run_of(BATCHES * _TOKENS, "tok")),
    "epochs": Case({"k": 4, "ratio": "1ep"}, 4, _EPOCHS),
    "half of the epochs": Case(_HALF, 5, _EPOCHS),
    "evaluation on the way": Case(_HALF, 4, {"eval_interval": "1ba"}),
    "learning rate per stage": Case(
        _HALF,
        5,
        {"scheduler": {"name": "per_stage", "scheduler": {"name": "cosine_with_warmup", "t_warmup": "1ba"}}},
    ),
    "constant compute, before the switch": Case(_CONSTANT, kill=2),
    "constant compute, at the switch": Case({**_CONSTANT, "on_switch": "reset"}, 4, {"eval_interval": "1ba"}),
    "constant compute, after the switch": Case(_CONSTANT, kill=6),
    "constant compute, older checkpoint": Case(_CONSTANT, kill=6, from_batch=3),
    "constant compute, in stages": Case({**_DOWN, "constant_compute": True}, kill=5),
    "constant compute, tokens": Case(
        {**_CONSTANT, "ratio": f"{4 * 4 * _TOKENS}tok"}, 5, _run_of((4 * 4 + 4) * _TOKENS, "tok")
    ),
    "rarely saved": Case(_HALF, kill=7, changes={"save_interval": "100ba"}),  # but at the switch
}
QUICK = ("at the switch, reset",)


class Diary(Callback):
    """Writes every step's loss down to the last bit, and dies when it is told to."""

    def __init__(self, path: str, kill: int | None) -> None:
        self._path, self._kill = Path(path), kill

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BATCH_START and state.timestamp.batch == self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == Event.BATCH_END:
            loss = state.total_loss_dict["loss/train/total"]
            with self._path.open("a") as file:
                file.write(f"{state.timestamp.batch.value} {state.timestamp.token.value} {loss.hex()}\n")


def run(case: Case, corpus: Path, folder: Path, way: str) -> None:
    """Trains one way: ``whole``, ``killed`` or ``resumed``."""
    kill = case.kill if way == "killed" else None
    saves = {
        "save_folder": str(folder / ("whole" if way == "whole" else "killed")),
        "save_interval": "1ba",
        "save_filename": "ba{batch}.pt",
        "run_name": "case",
        "autoresume": case.from_batch is None,
        "save_overwrite": case.from_batch is not None,
    }
    changes = {"max_duration": f"{BATCHES}ba", "algorithms": {"patch_level": case.patch_level}}
    cfg = config(corpus, mpt(), **(changes | saves | case.changes))
    if way == "resumed" and case.from_batch is not None:
        cfg["load_path"] = str(folder / "killed" / f"ba{case.from_batch}.pt")
    cfg["train_loader"]["dataset"]["shuffle"] = True
    registry.callbacks.register("diary", func=Diary)
    cfg["callbacks"] = {"diary": {"path": str(folder / f"{way}.txt"), "kill": kill}}
    trainer = train(cfg)
    (folder / f"{way}.sha256").write_text(digest(trainer))


def digest(trainer: Trainer) -> str:
    """One number for every bit of weights, optimizer state and clock."""
    total = hashlib.sha256()
    state = trainer.state
    tensors = [*state.model.state_dict().values()]
    for optimizer in state.optimizers:
        tensors += [t for entry in optimizer.state_dict()["state"].values() for t in entry.values()]
    for tensor in tensors:
        total.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    clock = state.timestamp
    total.update(f"{clock.epoch.value} {clock.batch.value} {clock.sample.value} {clock.token.value}".encode())
    return total.hexdigest()


def fork(case: Case, corpus: Path, folder: Path, way: str) -> int:
    """Runs in a child; returns how it ended, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(case, corpus, folder, way)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended)


def main(output: Path, corpora: dict[str, Path], names: list[str]) -> None:
    """Runs the named cases; what each left behind lies in a folder of its name."""
    for number, name in enumerate(names):
        case = CASES[name]
        folder = output / str(number)
        folder.mkdir(parents=True)
        corpus = corpora["small" if case.changes is _EPOCHS else "large"]
        ended = {way: fork(case, corpus, folder, way) for way in ("whole", "killed", "resumed")}
        (folder / "ended.json").write_text(json.dumps({"name": name, **ended}))


if __name__ == "__main__":
    small, large = (Path(folder) for folder in sys.argv[2:4])
    main(Path(sys.argv[1]), {"small": small, "large": large}, sys.argv[4:])
