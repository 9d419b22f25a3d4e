"""The YAML of a run, typed: what it says of stages, rows, model, data and clock.

Letters: L the model's context in positions, T raw tokens in a training row, k tokens per patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from composer.core import Time, TimeUnit
from omegaconf import DictConfig

from patch_algorithm.algorithm.patch_level import PatchLevel
from patch_algorithm.planning.config import Values, read_config, resolved
from patch_algorithm.planning.data_section import (
    DataSection,
    Loader,
    batches_per_epoch,
    builds_own_data,
    read_eval_loaders,
    read_loader,
)
from patch_algorithm.planning.model_section import ModelSection, read_model
from patch_algorithm.stages.boundaries import run_length
from patch_algorithm.stages.plan import StagePlan, require_equal_steps

__all__ = ["DataSection", "Loader", "ModelSection", "Named", "RunFile"]

_ALGORITHM = "algorithms.patch_level"
_CHANGES_DATA = "curriculum_learning"


@dataclass(frozen=True)
class Named:
    """What llm-foundry builds by name: a scheduler, an optimizer or a tokenizer.

    Attributes:
        name: The name; ``None`` where the YAML has none.
        arguments: The other keys of the section.
    """

    name: str | None
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class RunFile:
    """A run's configuration. What the YAML does not say is ``None``.

    Attributes:
        path: The file it was read from.
        config: The whole of it, merged and resolved.
        algorithm: ``algorithms.patch_level``; ``None`` for a run without it.
        plan: The stages, as far as they can be told; ``None`` where they need an epoch's length that no
            description of the data gives. A run without ``patch_level`` has one without patch stages.
        max_duration: The length of the run, in the unit that it was given in.
        length: The same in batches, samples or tokens; ``None`` where an epoch's length is not known.
        model: The section ``model``.
        train_loader: The section ``train_loader``.
        eval_loaders: One for each of ``eval_loader``.
        tokenizer: The section ``tokenizer``.
        scheduler: The section ``scheduler``.
        optimizer: The section ``optimizer``.
        global_train_batch_size: Rows in a step, of all devices.
        device_train_microbatch_size: Rows in a forward, or ``'auto'``.
        device_eval_batch_size: Rows in an evaluation batch.
        precision: Composer's name of it.
        eval_interval: Time between evaluations; ``None`` if switched off.
        save_interval: Time between checkpoints; ``None`` if switched off.
        save_folder: Where checkpoints go; ``None`` where none are saved.
        save_num_checkpoints_to_keep: -1 for all.
        save_overwrite: Whether files of an earlier run are replaced.
        autoresume: Whether the run goes on from checkpoints in ``save_folder``.
        run_name: The run's name.
        callbacks: The section ``callbacks``.
        loggers: The section ``loggers``.
    """

    path: str
    config: Mapping[str, Any]
    algorithm: PatchLevel | None
    plan: StagePlan | None
    max_duration: Time[Any] | None
    length: Time[int] | None
    model: ModelSection
    train_loader: Loader
    eval_loaders: tuple[Loader, ...]
    tokenizer: Named
    scheduler: Named
    optimizer: Named
    global_train_batch_size: int | None
    device_train_microbatch_size: int | float | str | None
    device_eval_batch_size: int | None
    precision: str
    eval_interval: Time[Any] | None
    save_interval: Time[Any] | None
    save_folder: str | None
    save_num_checkpoints_to_keep: int
    save_overwrite: bool
    autoresume: bool
    run_name: str | None
    callbacks: Mapping[str, Any]
    loggers: Mapping[str, Any]

    @property
    def T(self) -> int | None:
        """Raw tokens in a training row."""
        return self.train_loader.dataset.row_tokens

    @property
    def L(self) -> int | None:
        """Positions the model is trained on: ``seq_len``, or what the rows and the context leave of it."""
        if self.algorithm is not None and self.algorithm.seq_len is not None:
            return self.algorithm.seq_len
        T, context = self.T, self.model.context
        return min(T, context) if T is not None and context is not None else None

    @property
    def ks(self) -> tuple[int, ...]:
        """Tokens per patch of every patch stage, in their order."""
        if self.algorithm is None:
            return ()
        if self.algorithm.stages is not None:
            return tuple(stage["k"] for stage in self.algorithm.stages)
        return () if self.plan is not None and not self.plan.stages else (self.algorithm.k,)

    @property
    def tokens_per_batch(self) -> int | None:
        """Raw tokens in a step."""
        T, rows = self.T, self.global_train_batch_size
        return None if T is None or rows is None else T * rows

    @property
    def changes_data(self) -> bool:
        """Whether a callback goes on with other data than that of ``train_loader``."""
        return _CHANGES_DATA in self.callbacks

    @property
    def batches_per_epoch(self) -> int | None:
        """Steps in an epoch, by the rows on disk; not where later epochs read other data."""
        if self.changes_data:
            return None
        return batches_per_epoch(self.train_loader, self.global_train_batch_size)

    @classmethod
    def read(cls, path: str, overrides: Sequence[str] = ()) -> RunFile:
        """Reads a YAML and merges ``key=value`` overrides into it.

        Raises:
            ValueError: If the file cannot be read, or a value is invalid; it names the full key.
        """
        return cls.from_config(read_config(path, overrides), path)

    @classmethod
    def from_config(cls, cfg: DictConfig, path: str = "") -> RunFile:
        """Takes a configuration that has been read already.

        Raises:
            ValueError: If a value is invalid; it names the full key.
        """
        top = Values(resolved(cfg))
        train_loader = read_loader(top.section("train_loader"), builds_own_data(top))
        global_batch = top.whole("global_train_batch_size")
        max_duration = top.time("max_duration")
        changes_data = _CHANGES_DATA in top.section("callbacks").mapping
        per_epoch = None if changes_data else batches_per_epoch(train_loader, global_batch)
        length = _length(max_duration, per_epoch)
        algorithm = _algorithm(top.section("algorithms"))
        return cls(
            path=path,
            config=top.mapping,
            algorithm=algorithm,
            plan=_plan(algorithm, length, max_duration),
            max_duration=max_duration,
            length=length,
            model=read_model(top.section("model")),
            train_loader=train_loader,
            eval_loaders=read_eval_loaders(top),
            tokenizer=_tokenizer(top.section("tokenizer")),
            scheduler=_named(top.section("scheduler")),
            optimizer=_named(top.section("optimizer")),
            global_train_batch_size=global_batch,
            device_train_microbatch_size=_microbatch(top),
            device_eval_batch_size=top.whole("device_eval_batch_size"),
            precision=top.text("precision") or "amp_bf16",
            eval_interval=_interval(top, "eval_interval", 1),
            save_interval=_interval(top, "save_interval", "1000ba"),
            save_folder=top.text("save_folder"),
            save_num_checkpoints_to_keep=_kept(top),
            save_overwrite=top.flag("save_overwrite", False),
            autoresume=top.flag("autoresume", False),
            run_name=None if top.get("run_name") is None else str(top.get("run_name")),
            callbacks=top.section("callbacks").mapping,
            loggers=top.section("loggers").mapping,
        )


def _algorithm(algorithms: Values) -> PatchLevel | None:
    if "patch_level" not in algorithms.mapping:
        return None
    arguments = algorithms.section("patch_level").mapping
    known = list(signature(PatchLevel).parameters)
    if not set(arguments) <= set(known):
        raise ValueError(
            f"{_ALGORITHM} is {arguments!r}; expected a mapping with keys among {', '.join(known)}."
        )
    try:
        return PatchLevel(**arguments)
    except ValueError as error:
        raise _of_algorithm(error) from error


def _plan(
    algorithm: PatchLevel | None, length: Time[int] | None, max_duration: Time[Any] | None
) -> StagePlan | None:
    if algorithm is None:
        return StagePlan((), None, None)
    try:
        plan = algorithm.plan_for(length)
        if algorithm.constant_compute and max_duration is not None and (plan is None or plan.stages):
            require_equal_steps(max_duration)
        return plan
    except ValueError as error:
        raise _of_algorithm(error) from error


def _of_algorithm(error: ValueError) -> ValueError:
    """The error with the full key of the argument that it begins with, or else of the section."""
    text = str(error)
    named = any(text.startswith((f"{name}=", f"{name}[")) for name in signature(PatchLevel).parameters)
    return ValueError(f"{_ALGORITHM}{'.' if named else ': '}{text}")


def _length(max_duration: Time[Any] | None, batches_per_epoch: int | None) -> Time[int] | None:
    if max_duration is None or (max_duration.unit == TimeUnit.EPOCH and batches_per_epoch is None):
        return None
    try:
        return run_length(max_duration, batches_per_epoch)
    except ValueError as error:
        raise ValueError(f"max_duration={max_duration.to_timestring()!r}: {error}") from error


def _named(values: Values) -> Named:
    arguments = {name: value for name, value in values.mapping.items() if name != "name"}
    return Named(values.text("name"), arguments)


def _tokenizer(values: Values) -> Named:
    values.section("kwargs")  # refused here where it is no mapping
    return _named(values)


def _microbatch(top: Values) -> int | float | str | None:
    given = top.get("device_train_microbatch_size")
    if given is None:
        return "auto"  # llm-foundry's default
    if given == "auto" or (isinstance(given, int | float) and not isinstance(given, bool) and given > 0):
        return given
    raise ValueError(f"device_train_microbatch_size is {given!r}; expected a number of rows, or auto.")


def _interval(top: Values, name: str, default: int | str) -> Time[Any] | None:
    time = top.time(name, default)
    return None if time is None or time.value <= 0 else time


def _kept(top: Values) -> int:
    kept = top.whole("save_num_checkpoints_to_keep", least=-1)
    return -1 if kept is None else kept
