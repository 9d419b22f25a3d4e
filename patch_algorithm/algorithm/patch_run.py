"""One run of patch-level training, from the trainer's INIT to the end of its fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import Event, State, Timestamp
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from patch_algorithm.algorithm.banner import end_of_stage
from patch_algorithm.algorithm.batch_checks import check_positions
from patch_algorithm.algorithm.end_of_stage import EndOfStage
from patch_algorithm.algorithm.folded_ids import FoldedIds, refuse_edits
from patch_algorithm.algorithm.joined_batches import join_batches, take_apart
from patch_algorithm.algorithm.loss_metrics import LossTally
from patch_algorithm.algorithm.optimizer_reset import refuse_unresettable, reset_moments
from patch_algorithm.algorithm.row_folding import RowFolder
from patch_algorithm.algorithm.run_checks import findings_at_start
from patch_algorithm.algorithm.stage_memory import StageMemory
from patch_algorithm.common.announce import announce, warn
from patch_algorithm.common.step_sums import StepSums
from patch_algorithm.loss import TargetWeights, patch_cross_entropy, target_weights
from patch_algorithm.model_access import ModelHooks, context_length, refuse_unsupported, unwrap
from patch_algorithm.model_access.loss_call import logits_of
from patch_algorithm.patching import PATCH_TARGETS
from patch_algorithm.stages.boundaries import Boundary
from patch_algorithm.stages.compute import PositionCount
from patch_algorithm.stages.plan import Sides
from patch_algorithm.stages.timeline import Timeline
from patch_algorithm.stages.trainer_clock import max_duration, next_step, raw_tokens, share_of_run

__all__ = ["PatchRun", "Settings"]

_EVERY_STAGE = frozenset(
    {Event.AFTER_LOAD, Event.FIT_START, Event.AFTER_DATALOADER, Event.BATCH_END, Event.FIT_END}
)
_PATCH_STAGE = frozenset(
    {
        Event.BEFORE_TRAIN_BATCH,
        Event.AFTER_FORWARD,
        Event.BEFORE_LOSS,
        Event.AFTER_LOSS,
        Event.AFTER_BACKWARD,
        Event.AFTER_TRAIN_BATCH,
        Event.EPOCH_END,
    }
)
# What comes after the callbacks' BATCH_END, so that the end of a stage is told after its last step.
_ANNOUNCING = frozenset({Event.EVAL_BEFORE_ALL, Event.BATCH_CHECKPOINT, Event.FIT_END})


@dataclass(frozen=True)
class Settings:
    """What :class:`.PatchLevel` was configured with; its docstring says what each means."""

    stages: Sequence[tuple[int, Boundary]]
    seq_len: int | None
    target_weights: TargetWeights
    loss_kernel: str
    sides: Sides
    on_switch: str
    rehearse_switch: bool
    scale_microbatch: bool
    checkpoint_at_switch: bool
    eval_at_switch: bool
    on_mismatch: str
    constant_compute: bool


class PatchRun:
    """Does what belongs to each event of one trainer.

    Made at the trainer's INIT. A run that was saved comes back by :meth:`load_state_dict`, and goes on
    when the first fit starts.

    Args:
        settings: The configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.timeline = Timeline(
            settings.stages,
            settings.seq_len,
            settings.on_mismatch,
            settings.sides,
            settings.constant_compute,
        )
        self.count = PositionCount()
        self.positions_per_row = 0
        self._positions_of_batch = 0, 0  # computed, and at token level
        self._spared_tokens = 0.0
        self._rows = RowFolder(self.timeline, self.count, settings.target_weights)
        self._memory = StageMemory(settings.rehearse_switch, settings.scale_microbatch)
        self._end_of_stage = EndOfStage(settings.checkpoint_at_switch, settings.eval_at_switch)
        self._tally = LossTally()
        self._hooks: ModelHooks | None = None
        self._folded_ids = FoldedIds()
        self._metrics_aside: dict[str, Any] | None = None
        self._weights: dict[tuple[int, torch.device, torch.dtype], Tensor | None] = {}
        self._news: str | None = None
        self._warned_of_no_switch = False
        self._checked_optimizers = False

    @property
    def events(self) -> frozenset[Event]:
        """The events at which there is something to do; in the token stage that is cutting and logging."""
        events = _EVERY_STAGE | _PATCH_STAGE if self.timeline.in_patch_stage else _EVERY_STAGE
        return events if self._news is None else events | _ANNOUNCING

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Does what belongs to ``event``."""
        if event in _ANNOUNCING:
            self._announce_news()
        if event in _EVERY_STAGE | _PATCH_STAGE:
            getattr(self, f"_on_{event.value}")(state, logger)

    def state_dict(self) -> dict[str, Any]:
        """What the run has settled on, in primitives."""
        return {**self.timeline.state_dict(), "positions": self.count.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes a checkpoint's plan; it is compared with the configuration when fit starts."""
        self.timeline.load_state_dict(state)
        if "positions" in state:
            self._take_count(PositionCount.from_state_dict(state["positions"]))
        self._spared_tokens = state.get("spared_tokens", 0.0)

    def _take_count(self, count: PositionCount) -> None:
        self.count.computed, self.count.at_token_level = count.computed, count.at_token_level

    def _on_after_load(self, state: State, logger: Logger) -> None:
        self.timeline.note_length(state.max_duration)

    def _on_fit_start(self, state: State, logger: Logger) -> None:
        take_apart(state)  # from a fit that broke off: all below reads the trainer's own loader
        model = unwrap(state.model)
        if self._hooks is None:
            self._hooks = ModelHooks(model)
        self.timeline.settle(state)
        plan = self.timeline.plan
        if plan.seq_len is not None:
            check_positions(plan.seq_len, context_length(model))
        self._rows.start_fit()
        self._folded_ids.start_fit()
        self._memory.restore(state)
        self._warned_of_no_switch = self._checked_optimizers = False
        self._count_what_is_behind(state)
        self._end_of_stage.attach(state)
        self._enter(state)
        join_batches(state, self.timeline)
        if not self.timeline.in_patch_stage:
            self._hooks.detach()  # from a fit that broke off
            return
        refuse_unsupported(model, self._settings.seq_len)
        if self.timeline.never_switches(state):
            self._warn_of_no_switch(state)
        self._warn_of_findings(state)
        # Folded batches would need k copies of the logits in the model's own train metrics.
        if self._metrics_aside is None:  # else they still are, from a fit that broke off
            self._metrics_aside, state.train_metrics = state.train_metrics, {}
        self._hooks.attach()

    def _warn_of_findings(self, state: State) -> None:
        resets = self._settings.on_switch == "reset"
        context = context_length(unwrap(state.model))
        found = findings_at_start(state, self.timeline.plan, context, resets, self._settings.rehearse_switch)
        if found:
            announce(found)

    def _count_what_is_behind(self, state: State) -> None:
        if state.timestamp.batch == 0:
            self._take_count(PositionCount())  # the clock may have been set back
        elif not self.count.at_token_level:
            # Of a checkpoint that says nothing of us, all there is was trained at token level; version 0.1
            # saved what patches had spared instead of positions.
            behind, ranks = raw_tokens(state.timestamp), dist.get_world_size()
            self._take_count(PositionCount((behind - self._spared_tokens) / ranks, behind / ranks))

    def _enter(self, state: State) -> None:
        """Enters the stage of the present clock, which may come after the one that was saved."""
        begins_late = not self.timeline.has_begun and state.timestamp.batch > 0
        left = self.timeline.stage
        if self.timeline.enter(next_step(state), state.timestamp):
            self._leave(left, state)
        elif begins_late and self.timeline.plan.stages and not self.timeline.in_patch_stage:
            batch, switch = int(state.timestamp.batch.value), self.timeline.plan.stages[-1].until
            warn(
                f"patch_level: no patch stage is left. The checkpoint (batch {batch}) comes from a run "
                f"without patch_level, and the switch at {switch.to_timestring()} is behind it, so the rest "
                "of this run trains at token level. To train its weights in patches, start a new run from "
                "them (load_weights_only: true), or set ratio to a later time of this run, such as '20000ba'."
            )

    def _warn_of_no_switch(self, state: State) -> None:
        if self._warned_of_no_switch:
            return
        self._warned_of_no_switch = True
        switch, end = self.timeline.plan.stages[-1].until, max_duration(state)
        warn(
            f"The switch at {switch.to_timestring()} is not before the end of the run at "
            f"{end.to_timestring()}: the run ends as a patch model, which cannot generate text. "
            "Lower ratio, or resume the run with a longer max_duration."
        )

    def _on_after_dataloader(self, state: State, logger: Logger) -> None:
        self._advance(state, state.timestamp)
        self._announce_news()
        if not self.timeline.in_patch_stage:
            self._give_metrics_back(state)
            if not _has_token_rows(state.batch):
                self._positions_of_batch = 0, 0
                return
        raw_batch = state.batch
        state.batch = self._rows.fold(raw_batch, self.timeline.stage, state)
        self.positions_per_row = state.batch["input_ids"].shape[1]
        self._positions_of_batch = state.batch["input_ids"].numel(), raw_batch["input_ids"].numel()
        if self.timeline.in_patch_stage:
            self._memory.prepare(state, self._rows, raw_batch, self.positions_per_row)

    def _on_before_train_batch(self, state: State, logger: Logger) -> None:
        self._tally.reset()
        self._model_hooks.disarm()  # from a step that ran out of memory and is tried again
        self._folded_ids.check_batch(state.batch)

    def _on_after_forward(self, state: State, logger: Logger) -> None:
        self._model_hooks.check_forward(state.batch)
        self._folded_ids.check_microbatch(state.batch)

    def _on_before_loss(self, state: State, logger: Logger) -> None:
        targets_BPK = state.batch[PATCH_TARGETS]
        logits = logits_of(state.outputs)
        weights_K = self._target_weights(targets_BPK.shape[-1], logits)
        loss = patch_cross_entropy(logits, targets_BPK, weights=weights_K, kernel=self._settings.loss_kernel)
        self._model_hooks.replace_loss(loss.mean, state.outputs, state.batch)
        self._tally.add(loss)

    def _target_weights(self, k: int, logits: Tensor) -> Tensor | None:
        # In the precision of the loss: some devices (mps) have no float64, in which they are made.
        key = k, logits.device, torch.promote_types(logits.dtype, torch.float32)
        if key not in self._weights:
            weights_K = target_weights(k, self._settings.target_weights)
            self._weights[key] = None if weights_K is None else weights_K.to(key[2]).to(key[1])
        return self._weights[key]

    def _on_after_loss(self, state: State, logger: Logger) -> None:
        self._model_hooks.restore_loss()

    def _on_after_backward(self, state: State, logger: Logger) -> None:
        self._model_hooks.check_backward()
        self._model_hooks.disarm()

    def _on_after_train_batch(self, state: State, logger: Logger) -> None:
        self._folded_ids.check_before_update()

    def _on_batch_end(self, state: State, logger: Logger) -> None:
        if self.timeline.in_patch_stage:
            self._read_loss(state, logger)
            self._check_optimizers(state)
        self._log_progress(state, logger)
        self._advance(state, next_step(state))

    def _read_loss(self, state: State, logger: Logger) -> None:
        loss = self._tally.read(StepSums.of(state), self._folded_ids.take())
        if loss is not None:
            logger.log_metrics(loss.metrics(), step=_step(state))
            refuse_edits(loss.edited > 0)

    def _check_optimizers(self, state: State) -> None:
        # Before the first step optimizers have no state to look at, and at the switch it is late.
        if self._settings.on_switch == "reset" and not self._checked_optimizers:
            for optimizer in state.optimizers:
                refuse_unresettable(optimizer)
            self._checked_optimizers = True

    def _log_progress(self, state: State, logger: Logger) -> None:
        self.count.add(*self._positions_of_batch)
        logger.log_metrics(
            {
                "patch_level/stage": self.timeline.stage,
                "patch_level/k": self.timeline.k,
                "patch_level/positions_per_row": self.positions_per_row,
                "patch_level/share_of_run": share_of_run(state),
                "patch_level/compute_share": self.count.share,
            },
            step=_step(state),
        )

    def _on_epoch_end(self, state: State, logger: Logger) -> None:
        self._advance(state, state.timestamp)

    def _on_fit_end(self, state: State, logger: Logger) -> None:
        if self.timeline.in_patch_stage:
            self._warn_of_no_switch(state)
        self._model_hooks.detach()
        take_apart(state)
        self._end_of_stage.detach()
        self._memory.restore(state)
        self._give_metrics_back(state)

    def _advance(self, state: State, clock: Timestamp) -> None:
        """Passes to the stage that the next step belongs to, by the clock at its start."""
        left = self.timeline.stage
        if self.timeline.advance(clock, state.timestamp):
            self._leave(left, state)

    def _leave(self, left: int, state: State) -> None:
        """What is done once, where a stage ends."""
        self._memory.restore(state)
        if self._settings.on_switch == "reset":
            for optimizer in state.optimizers:
                reset_moments(optimizer)
        if not self.timeline.in_patch_stage:
            self._model_hooks.detach()
        self._end_of_stage.request(state)
        batch, reset = int(state.timestamp.batch.value), self._settings.on_switch == "reset"
        self._news = end_of_stage(self.timeline.plan, left, self.timeline.stage, batch, reset)

    def _announce_news(self) -> None:
        if self._news is not None:
            announce(self._news)
            self._news = None

    def _give_metrics_back(self, state: State) -> None:
        # Not at the switch itself: at the end of an epoch the trainer would compute metrics that no
        # token step has updated.
        if self._metrics_aside is not None:
            state.train_metrics, self._metrics_aside = self._metrics_aside, None

    @property
    def _model_hooks(self) -> ModelHooks:
        if self._hooks is None:
            raise RuntimeError("patch_level has not seen the start of a fit.")
        return self._hooks


def _step(state: State) -> int:
    # The trainer logs a step's loss before it advances its clock: the two belong on one line.
    return int(state.timestamp.batch.value) - 1


def _has_token_rows(batch: Any) -> bool:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return isinstance(ids, torch.Tensor) and ids.dim() == 2
