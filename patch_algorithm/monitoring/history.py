"""A file of everything that a run logs, over x values that training and evaluation share.

``history.jsonl`` has one JSON object a line. A line of ``kind`` ``step`` or ``eval`` says where the run stood
(the fields of :class:`.Moment`) and what was logged there (``metrics``); ``other`` is what was logged at the
end of an epoch or a fit; ``start`` says after which ``step`` a process began, or a fit with another
``max_duration``, and what it was asked to do;
``end`` says that a fit came to its end. :mod:`.history_file` reads the file.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import State, Time
from composer.loggers import Logger, LoggerDestination
from composer.utils import RemoteUploader, dist, format_name_with_dist, get_file, parse_uri
from composer.utils.file_helpers import is_uri

from patch_algorithm.common.announce import announce
from patch_algorithm.common.version import __version__
from patch_algorithm.monitoring.history_file import History, Line, read
from patch_algorithm.monitoring.stage_recorder import StageRecorder
from patch_algorithm.stages.forecast import find_patch_level, state_at
from patch_algorithm.stages.trainer_clock import dataloader_len, share_of_run

__all__ = ["History", "HistoryLogger", "Line", "read"]

_NAME = "history.jsonl"


class HistoryLogger(LoggerDestination):
    """Writes every metric of every step and every evaluation to ``history.jsonl``, on the first rank.

    Each line has the stage, its k, and what the run has taken so far: steps, raw tokens, positions, FLOPs
    and seconds of training. An evaluation has those of the step before it. A resumed run appends to the
    file, beginning with a line that says where; :func:`read` drops the steps that it repeats. Each line
    is written as it is logged, so a killed run loses at most the last one.

    Args:
        path (str, optional): The file; it may contain ``{run_name}``, and be in an object store
            (``s3://...``), where it is replaced at each checkpoint and at the end. Default: ``None``, which
            is ``history.jsonl`` in the run's save folder, or in ``./{run_name}`` if there is none.

    Raises:
        ValueError: If ``path`` is not a path.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is not None and (not isinstance(path, str) or not path.strip()):
            raise ValueError(
                f"history: path={path!r} is not a path. Give one such as './history.jsonl', or leave it out."
            )
        self.path = path
        self._file: _HistoryFile | None = None
        self._metrics: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keeps what is logged for the line of the step or evaluation that it belongs to."""
        if dist.get_global_rank() != 0:
            return  # reading a metric waits for the device
        numbers = {name: _number(value) for name, value in metrics.items()}
        self._metrics.update({name: number for name, number in numbers.items() if number is not None})

    def init(self, state: State, logger: Logger) -> None:
        """Finds the trainer's recorder, before the model is sharded."""
        self.close(state, logger)  # of another trainer
        self._recorder = StageRecorder.of(state)
        self._parameters = sum(parameter.numel() for parameter in state.model.parameters())
        self._planned: Time | None = None
        self._metrics = {}
        self._in_fit = False
        self._begins_after: int | None = 0
        self._last_step = 0

    def after_load(self, state: State, logger: Logger) -> None:
        """Notes where the run continues."""
        self._begins_after = self._last_step = int(state.timestamp.batch.value)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Notes where the run continues if the clock was set back, or if it is to end elsewhere."""
        self._in_fit = True
        step = int(state.timestamp.batch.value)
        if step != self._last_step or _text(state.max_duration) != _text(self._planned):
            self._begins_after = self._last_step = step

    def batch_end(self, state: State, logger: Logger) -> None:
        """Writes the step, with the learning rate whether ``lr_monitor`` logs it or not."""
        for optimizer in state.optimizers or ():
            name = f"lr-{type(optimizer).__name__}/group0"
            self._metrics.setdefault(name, float(optimizer.param_groups[0]["lr"]))
        self._write("step", state)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Writes the evaluation, of all evaluators that were due."""
        self._write("eval", state)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """Writes an evaluation that was requested on its own."""
        self._write("eval", state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Writes what was logged at the end of an epoch, which belongs to no step."""
        self._write("other", state)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Writes what the end of the fit has logged, and how much of the run it has trained."""
        self._in_fit = False
        self._write("other", state)
        if self._file is not None and self._planned is not None:
            share = share_of_run(state_at(state, state.timestamp, self._planned))
            self._file.append({"kind": "end", "step": int(state.timestamp.batch.value), "share": share})
            self._file.keep()

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Makes sure that a run that resumes from a checkpoint finds all lines before it."""
        savers = (callback for callback in state.callbacks if isinstance(callback, CheckpointSaver))
        if self._file is not None and any(s.last_checkpoint_batch == state.timestamp.batch for s in savers):
            self._file.keep()

    epoch_checkpoint = iteration_checkpoint = batch_checkpoint

    def close(self, state: State, logger: Logger) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, kind: str, state: State) -> None:
        metrics, self._metrics = self._metrics, {}
        if dist.get_global_rank() != 0 or (kind == "other" and not metrics):
            return
        if self._file is None:
            self._file = self._open(state)
        if self._begins_after is not None:
            self._file.append({"kind": "start", "step": self._begins_after, **self._settings(state)})
            self._begins_after = None
        moment = self._recorder.moment(state)
        self._last_step = moment.step
        self._file.append({"kind": kind, **asdict(moment), "metrics": metrics})
        if not self._in_fit:  # no checkpoint comes any more
            self._file.keep()

    def _settings(self, state: State) -> dict[str, Any]:
        """What tells whether two runs can be compared, and whether a run has come to its planned end."""
        self._planned = state.max_duration
        optimizers = state.optimizers or ()
        algorithm = find_patch_level(state)
        return {
            "run_name": state.run_name,
            "version": __version__,
            "max_duration": _text(self._planned),
            "batches_per_epoch": dataloader_len(state),
            "seed": state.rank_zero_seed,
            "ranks": dist.get_world_size(),
            "parameters": self._parameters,
            "optimizer": type(optimizers[0]).__name__ if optimizers else None,
            "weight_decay": optimizers[0].param_groups[0].get("weight_decay") if optimizers else None,
            **{name: getattr(algorithm, name, None) for name in ("on_switch", "target_weights")},
        }

    def _open(self, state: State) -> _HistoryFile:
        saver = next((c for c in state.callbacks if isinstance(c, CheckpointSaver)), None)
        place, uploader = self.path, None
        if place is None and saver is not None:
            uploader = saver.remote_uploader
            folder = saver.folder if uploader is None else uploader.remote_folder
            place = f"{folder.rstrip('/')}/{_NAME}"
        place = format_name_with_dist(place or f"{{run_name}}/{_NAME}", state.run_name)
        if is_uri(place) and uploader is None:
            uploader = RemoteUploader(remote_folder=place, num_concurrent_uploads=1)
        announce(f"history: {place}")
        return _HistoryFile(place, uploader if is_uri(place) else None)


class _HistoryFile:
    """A local file that grows by whole lines; :meth:`keep` copies it to an object store."""

    def __init__(self, place: str, uploader: RemoteUploader | None) -> None:
        self._place, self._uploader = place, uploader
        self._folder = None if uploader is None else tempfile.TemporaryDirectory()
        self._path = Path(place) if self._folder is None else Path(self._folder.name) / _NAME
        if self._uploader is not None:
            try:
                get_file(place, str(self._path), progress_bar=False)
            except FileNotFoundError:
                pass  # a new run
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab+")
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read() != b"\n":
                self._file.write(b"\n")  # ends the line in which an earlier process was killed

    def append(self, line: dict[str, Any]) -> None:
        """Writes a line, and leaves nothing of it in this process."""
        self._file.write(json.dumps(_without_nan(line), allow_nan=False).encode() + b"\n")
        self._file.flush()

    def keep(self) -> None:
        """Makes what was written survive a power failure, or the loss of this machine."""
        os.fsync(self._file.fileno())
        if self._uploader is not None:
            name = parse_uri(self._place)[2]
            self._uploader.upload_file_async(name, self._path, overwrite=True)
            self._uploader.check_workers()

    def close(self) -> None:
        """Closes the file, when all uploads have ended."""
        if self._uploader is not None:
            self._uploader.wait()
        self._file.close()


def _text(length: Time | None) -> str | None:
    return None if length is None else length.to_timestring()


def _number(value: Any) -> float | None:
    """A metric as a plain number; ``None`` if it is not a single one."""
    if isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else None
    if isinstance(value, (int, float)):
        return value
    return float(value) if isinstance(value, Real) else None  # NumPy's


def _without_nan(line: dict[str, Any]) -> dict[str, Any]:
    # JSON has no name for them; a float reads them as strings.
    def named(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    metrics = {name: named(value) for name, value in line.get("metrics", {}).items()}
    return {**line, "metrics": metrics} if metrics else line
