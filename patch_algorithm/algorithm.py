"""The Composer algorithm: decides by the clock, calls the pure functions, and logs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from composer.core import Algorithm, Event, State, Time, Timestamp
from composer.loggers import Logger

from patch_algorithm.arguments import a_bool, one_of, positive_int
from patch_algorithm.banner import announce
from patch_algorithm.checks import check_positions, refuse_company
from patch_algorithm.clock import (
    dataloader_len,
    max_duration,
    next_step,
    raw_tokens,
    raw_tokens_of_last_step,
    share_of_run,
    timestamp_of,
    timestamp_values,
)
from patch_algorithm.loss import TARGET_WEIGHTS, patch_cross_entropy, target_weights
from patch_algorithm.memory import StageMemory
from patch_algorithm.model_taps import ModelTaps, context_length, refuse_unsupported, unwrap
from patch_algorithm.moments import ON_SWITCH, refuse_unresettable, reset_moments
from patch_algorithm.patching import PATCH_TARGETS
from patch_algorithm.rows import RowFolder, Sides
from patch_algorithm.savers import SwitchSaver
from patch_algorithm.stages import (
    ON_MISMATCH,
    StageClock,
    StagePlan,
    in_batches,
    parse_boundary,
    parse_stages,
    run_length,
    settle,
)
from patch_algorithm.tally import LossTally

__all__ = ["PatchLevel"]

_DEFAULT_K = 4
_DEFAULT_RATIO = 2 / 3

_TOKEN_STAGE_EVENTS = {
    Event.INIT,
    Event.FIT_START,
    Event.AFTER_DATALOADER,
    Event.BATCH_END,
    Event.FIT_END,
}
_PATCH_STAGE_EVENTS = _TOKEN_STAGE_EVENTS | {
    Event.BEFORE_TRAIN_BATCH,
    Event.BEFORE_FORWARD,
    Event.AFTER_FORWARD,
    Event.BEFORE_LOSS,
    Event.AFTER_LOSS,
    Event.AFTER_BACKWARD,
    Event.EPOCH_END,
}


class PatchLevel(Algorithm):
    """Patch-level training (Shao, Meng and Zhou, ICLR 2025, arXiv 2407.12665).

    For a first share of the run each position reads a patch, the mean of ``k`` consecutive token
    embeddings, and predicts all ``k`` tokens of the next patch with one softmax; then the run switches
    to ordinary next-token training and ends as an ordinary model. No parameter is added.

    Runs on :attr:`.Event.AFTER_DATALOADER`, where rows longer than ``k * seq_len`` tokens are cut and
    folded into patches (the trainer has counted raw samples and tokens by then), and on
    :attr:`.Event.BEFORE_LOSS`, where the K-target loss takes the place of the model's own. In the token
    stage rows longer than ``seq_len`` are cut, and nothing else is done. Evaluation, prediction,
    generation and export see an ordinary token-level model at any time.

    Every step logs ``patch_level/`` ``stage`` (0 patch, 1 token), ``k``, ``positions_per_row``,
    ``share_of_run``, ``raw_tokens_per_sec`` and ``compute_share`` (positions computed so far as a share
    of token-only training on the same tokens); patch steps also ``loss``, ``perplexity`` and
    ``token_accuracy``, which are not comparable with the token stage's. The train metrics of the model
    are set aside in the patch stage.

    Args:
        k (int, optional): Tokens per patch. ``1`` trains at token level throughout. Default: ``4``.
        ratio (float | str, optional): The share of the run that is trained in patches, as a fraction of
            ``max_duration``, or a Composer time string (``'90000ba'``, ``'0.67dur'``). Resolved once, when
            the first fit starts, and saved with the run. ``0`` trains at token level throughout.
            Default: two thirds, the paper's.
        seq_len (int, optional): Positions the model is trained on. Rows of ``k * seq_len`` tokens are
            the paper's setting. Default: the model's own maximum if rows exceed it, else the length of
            the rows.
        stages (list, optional): Several patch stages instead of ``k`` and ``ratio``, in their order:
            ``[{k: 8, until: 0.3dur}, {k: 4, until: 0.6dur}]``, then token level. Rows longer than
            ``k * seq_len`` are cut to it in each stage. Default: one stage of ``k`` until ``ratio``.
        target_weights (str, optional): What the tokens of the next patch count in the loss:
            ``'uniform'``, or ``'inverse'``, ``1 / i`` at the i-th place, which the published ablation
            finds slightly better from ``k=8`` on. Default: ``'uniform'``.
        patch_inputs (bool, optional): With ``False`` positions read single tokens, for ablations and
            where data is short: nothing is saved then. Default: ``True``.
        patch_targets (bool, optional): With ``False`` positions predict the next token alone.
            Default: ``True``.
        on_switch (str, optional): What becomes of the optimizer's state at the end of each patch
            stage: ``'carry'`` or ``'reset'``. Default: ``'carry'``.
        rehearse_switch (bool, optional): Whether to run one token-stage microbatch before the first
            step where the switch makes rows longer in positions, so that running out of memory shows
            at once. Default: ``True``.
        scale_microbatch (bool, optional): Whether microbatches grow in the patch stage by as much as
            rows have fewer positions there. Without effect with ``'auto'``. Default: ``False``.
        checkpoint_at_switch (bool, optional): Whether the run's checkpoint savers save at the end of
            each patch stage, too. Default: ``True``.
        on_mismatch (str, optional): Where a checkpoint disagrees with the configuration in its stages
            or ``seq_len``: ``'error'``, ``'use_checkpoint'`` or ``'use_config'``. A stage once left is
            never entered again. Default: ``'error'``.

    Raises:
        ValueError: For arguments that are not of these kinds; when training starts, for models, rows
            and durations that cannot be trained so, before any weight changes.
        RehearsalError: If the token stage will not fit in memory.

    Example:
        .. code-block:: python

            from composer import Trainer
            from patch_algorithm import PatchLevel

            trainer = Trainer(model, ..., algorithms=[PatchLevel(k=4, ratio=0.67)])
    """

    def __init__(
        self,
        k: int = _DEFAULT_K,
        ratio: float | str = _DEFAULT_RATIO,
        seq_len: int | None = None,
        stages: Sequence[Mapping[str, Any]] | None = None,
        target_weights: str = "uniform",
        patch_inputs: bool = True,
        patch_targets: bool = True,
        on_switch: str = "carry",
        rehearse_switch: bool = True,
        scale_microbatch: bool = False,
        checkpoint_at_switch: bool = True,
        on_mismatch: str = "error",
    ) -> None:
        self.k = positive_int("k", k)
        self.ratio = ratio
        self.seq_len = None if seq_len is None else positive_int("seq_len", seq_len)
        self.stages = None if stages is None else list(stages)
        self.target_weights = one_of("target_weights", target_weights, TARGET_WEIGHTS)
        self.patch_inputs = a_bool("patch_inputs", patch_inputs)
        self.patch_targets = a_bool("patch_targets", patch_targets)
        self.on_switch = one_of("on_switch", on_switch, ON_SWITCH)
        self.rehearse_switch = a_bool("rehearse_switch", rehearse_switch)
        self.scale_microbatch = a_bool("scale_microbatch", scale_microbatch)
        self.checkpoint_at_switch = a_bool("checkpoint_at_switch", checkpoint_at_switch)
        self.on_mismatch = one_of("on_mismatch", on_mismatch, ON_MISMATCH)
        self._asked = self._parse_stages(stages)
        if not patch_inputs and not patch_targets:
            raise ValueError(
                "patch_inputs and patch_targets are both false, which is token-level training: set k=1."
            )
        self._forget_run()

    def _parse_stages(self, stages: object) -> tuple[tuple[int, float | Time[int]], ...]:
        end = parse_boundary(self.ratio)
        if stages is not None:
            if (self.k, self.ratio) != (_DEFAULT_K, _DEFAULT_RATIO):
                raise ValueError(
                    f"Both stages and k={self.k}, ratio={self.ratio!r} are given; stages takes their place. "
                    "Remove the one or the other."
                )
            return parse_stages(stages)
        length = end.value if isinstance(end, Time) else end
        return () if self.k == 1 or length == 0 else ((self.k, end),)

    def _forget_run(self) -> None:
        self._saved_plan: StagePlan | None = None
        self._rows: RowFolder | None = None
        self._stage = 0  # the latest entered; none before it is entered again
        self._started: dict[int, Timestamp] = {}
        self._spared_tokens = 0.0  # of token-level training, so far
        self._taps: ModelTaps | None = None
        self._saver = SwitchSaver()
        self._metrics_aside: dict[str, Any] | None = None
        self._memory = StageMemory(self.rehearse_switch, self.scale_microbatch)
        self._warned_of_no_switch = False
        self._positions_per_row = 0
        self._compute_share = 1.0
        self._tally = LossTally()

    def __repr__(self) -> str:
        names = (
            "k", "ratio", "seq_len", "stages", "target_weights", "patch_inputs", "patch_targets", "on_switch",
            "rehearse_switch", "scale_microbatch", "checkpoint_at_switch", "on_mismatch",
        )  # fmt: skip
        return f"PatchLevel({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def in_patch_stage(self) -> bool:
        """Whether the present or, between steps, the next step is a patch step."""
        return self._rows is not None and self._stage < len(self._rows.plan.stages)

    @property
    def switch_point(self) -> Time[int] | None:
        """Where the last patch stage ends, on the trainer's clock; ``None`` before the first fit."""
        return None if self._rows is None else self._rows.plan.switch

    @property
    def positions_per_row(self) -> int:
        """Positions of each row the model was last given."""
        return self._positions_per_row

    @property
    def compute_share(self) -> float:
        """Positions computed so far as a share of token-only training on the same raw tokens."""
        return self._compute_share

    def stage_clock(self, state: State) -> StageClock:
        """The stage that a step at the trainer's present clock belongs to.

        It may be asked as soon as ``max_duration`` is known, by learning rate schedulers before the
        first fit, too.

        Raises:
            ValueError: If the ends of stages cannot be told in a run of this length.
        """
        plan = self._present_plan(state)
        index = plan.index_at(state.timestamp, self._stage)
        at_end = index == len(plan.stages)
        return StageClock(
            index=index,
            count=len(plan.stages) + 1,
            k=plan.k_of(index),
            started=self._started.get(index, state.timestamp if index else Timestamp()),
            ends=max_duration(state) if at_end else plan.stages[index].until,
        )

    def match(self, event: Event, state: State) -> bool:
        """Whether there is something to do; after the switch that is cutting rows and logging."""
        return event in (_PATCH_STAGE_EVENTS if self.in_patch_stage else _TOKEN_STAGE_EVENTS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Does what belongs to ``event``."""
        getattr(self, f"_on_{event.value}")(state, logger)

    def state_dict(self) -> dict[str, Any]:
        """What the run has settled on, in primitives."""
        plan = {} if self._rows is None else self._rows.plan.state_dict()
        return {
            **super().state_dict(),
            **plan,
            "stage": self._stage,
            "started": {index: timestamp_values(clock) for index, clock in self._started.items()},
            "spared_tokens": self._spared_tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a checkpoint's plan; it is compared with the configuration when fit starts."""
        if "stages" in state:
            self._saved_plan = StagePlan.from_state_dict(state)
        self._stage = state.get("stage", 0)
        self._started = {index: timestamp_of(values) for index, values in state.get("started", {}).items()}
        self._spared_tokens = state.get("spared_tokens", 0.0)

    def _on_init(self, state: State, logger: Logger) -> None:
        if self._taps is not None:
            self._taps.detach()
        self._saver.detach()
        self._forget_run()  # of another trainer
        refuse_company(state, PatchLevel)
        if self._asked:
            refuse_unsupported(unwrap(state.model))

    def _present_plan(self, state: State) -> StagePlan:
        if self._rows is not None:
            return self._rows.plan
        if self._saved_plan is not None:
            return self._saved_plan
        return settle(self._asked, self.seq_len, self._run_length(state), None, self.on_mismatch)

    def _run_length(self, state: State) -> Time[int] | None:
        if all(isinstance(end, Time) for _, end in self._asked):
            return None
        return run_length(max_duration(state), dataloader_len(state))

    def _on_fit_start(self, state: State, logger: Logger) -> None:
        model = unwrap(state.model)
        if self._taps is None:
            self._taps = ModelTaps(model)
        self._settle(state)
        self._memory.restore(state)
        self._warned_of_no_switch = False
        if state.timestamp.batch == 0:
            self._spared_tokens = 0.0  # the clock may have been set back
        by_clock = self._plan.index_at(state.timestamp)
        if by_clock < self._stage:
            warnings.warn(
                f"By the clock this is a step of stage {by_clock} of {self._plan}, but that was left before "
                "and is not entered again. Start a new run from the weights (load_weights_only) for another.",
                stacklevel=2,
            )
        self._stage = max(by_clock, self._stage)
        self._started.setdefault(self._stage, state.timestamp if self._stage else Timestamp())
        if not self.in_patch_stage:
            self._taps.detach()  # from a fit that broke off
            return
        refuse_unsupported(model)
        self._warn_if_never_switching(state)
        if self.checkpoint_at_switch:
            self._saver.attach(state.callbacks)
        # Folded batches would need k copies of the logits in the model's own train metrics.
        if self._metrics_aside is None:  # else they still are, from a fit that broke off
            self._metrics_aside, state.train_metrics = state.train_metrics, {}
        self._taps.attach()

    def _settle(self, state: State) -> None:
        saved = self._saved_plan if self._rows is None else self._rows.plan
        plan = settle(self._asked, self.seq_len, self._run_length(state), saved, self.on_mismatch)
        if plan.seq_len is not None:
            check_positions(plan.seq_len, context_length(unwrap(state.model)))
        if self._rows is None:
            self._rows = RowFolder(plan, Sides(self.patch_inputs, self.patch_targets))
        self._rows.plan = plan
        self._rows.start_fit()
        # By on_mismatch='use_config' the two may differ in their number of stages.
        left_patches = saved is not None and self._stage >= len(saved.stages)
        self._stage = len(plan.stages) if left_patches else min(self._stage, len(plan.stages))

    def _warn_if_never_switching(self, state: State) -> None:
        switch, end = self._plan.stages[-1].until, max_duration(state)
        batches = dataloader_len(state)
        if batches is not None and switch.unit != end.unit:
            switch, end = in_batches(switch, batches), in_batches(end, batches)
        if switch.unit == end.unit and switch >= end:
            self._warn_of_no_switch(state)

    def _warn_of_no_switch(self, state: State) -> None:
        if self._warned_of_no_switch:
            return
        self._warned_of_no_switch = True
        switch, end = self._plan.stages[-1].until, max_duration(state)
        warnings.warn(
            f"The switch at {switch.to_timestring()} is not before the end of the run at "
            f"{end.to_timestring()}: the run ends as a patch model, which cannot generate. "
            "Lower ratio, or resume the run with a longer max_duration.",
            stacklevel=3,
        )

    def _on_after_dataloader(self, state: State, logger: Logger) -> None:
        self._advance(state, state.timestamp)
        if not self.in_patch_stage:
            self._give_metrics_back(state)
            if not _has_token_rows(state.batch):
                return
        raw_batch = state.batch
        state.batch = self._row_folder.fold(raw_batch, self._stage, state)
        self._positions_per_row = state.batch["input_ids"].shape[1]
        if self.in_patch_stage:
            self._memory.prepare(state, self._row_folder, raw_batch, self._positions_per_row)

    def _on_before_train_batch(self, state: State, logger: Logger) -> None:
        self._tally.reset()
        self._model_taps.restore_loss()

    def _on_before_forward(self, state: State, logger: Logger) -> None:
        self._model_taps.arm(state.batch)

    def _on_after_forward(self, state: State, logger: Logger) -> None:
        self._model_taps.require_one_lookup()

    def _on_before_loss(self, state: State, logger: Logger) -> None:
        outputs: Any = state.outputs
        if not isinstance(outputs, Mapping) or "logits" not in outputs:
            raise ValueError(
                f"The model's forward returned {type(outputs).__name__} where patch-level training needs a "
                "mapping with 'logits'. Wrap it as Composer's HuggingFaceModel, or train at token level."
            )
        targets_BPK = state.batch[PATCH_TARGETS]
        weights = target_weights(targets_BPK.shape[-1], self.target_weights, targets_BPK.device)
        loss = patch_cross_entropy(outputs["logits"], targets_BPK, weights=weights)
        self._model_taps.replace_loss(loss.mean, outputs)
        self._tally.add(loss)

    def _on_after_loss(self, state: State, logger: Logger) -> None:
        self._model_taps.restore_loss()

    def _on_after_backward(self, state: State, logger: Logger) -> None:
        self._model_taps.disarm()

    def _on_batch_end(self, state: State, logger: Logger) -> None:
        tokens = raw_tokens_of_last_step(state)
        if self.in_patch_stage:
            self._spared_tokens += tokens - tokens / self._row_folder.tokens_per_position(self._stage)
            logger.log_metrics(self._tally.metrics(), step=_step(state))
            if self.on_switch == "reset":
                for optimizer in state.optimizers:
                    refuse_unresettable(optimizer)
        self._log_progress(state, logger, tokens)
        self._advance(state, next_step(state))

    def _log_progress(self, state: State, logger: Logger, tokens: int) -> None:
        self._compute_share = 1 - self._spared_tokens / max(raw_tokens(state.timestamp), 1)
        seconds = state.timestamp.batch_wct.total_seconds()
        logger.log_metrics(
            {
                "patch_level/stage": 0 if self.in_patch_stage else 1,
                "patch_level/k": self._plan.k_of(self._stage),
                "patch_level/positions_per_row": self._positions_per_row,
                "patch_level/share_of_run": share_of_run(state),
                "patch_level/raw_tokens_per_sec": tokens / seconds if seconds > 0 else 0.0,
                "patch_level/compute_share": self._compute_share,
            },
            step=_step(state),
        )

    def _on_epoch_end(self, state: State, logger: Logger) -> None:
        self._advance(state, state.timestamp)

    def _on_fit_end(self, state: State, logger: Logger) -> None:
        if self.in_patch_stage:
            self._warn_of_no_switch(state)
        self._model_taps.detach()
        self._saver.detach()
        self._memory.restore(state)
        self._give_metrics_back(state)

    def _advance(self, state: State, clock: Timestamp) -> None:
        """Passes to the stage that the next step belongs to, by the clock at its start."""
        stage = self._plan.index_at(clock, self._stage)
        if stage == self._stage:
            return
        left, self._stage = self._plan.k_of(self._stage), stage
        self._started[stage] = state.timestamp
        self._memory.restore(state)
        if self.on_switch == "reset":
            for optimizer in state.optimizers:
                reset_moments(optimizer)
        self._saver.request(state)
        batch, moments = state.timestamp.batch.value, "reset" if self.on_switch == "reset" else "carried over"
        if self.in_patch_stage:
            announce(
                f"patch_level: the stage of k={left} ends at batch {batch}; k={self._plan.k_of(stage)} from "
                f"here on; optimizer state {moments}."
            )
            return
        self._model_taps.detach()
        announce(
            f"patch_level: the patch stage ends at batch {batch}; token stage from here on; optimizer state "
            f"{moments}."
        )

    def _give_metrics_back(self, state: State) -> None:
        # Not at the switch itself: at the end of an epoch the trainer would compute metrics that no
        # token step has updated.
        if self._metrics_aside is not None:
            state.train_metrics, self._metrics_aside = self._metrics_aside, None

    @property
    def _row_folder(self) -> RowFolder:
        if self._rows is None:
            raise RuntimeError("patch_level has not seen the start of a fit.")
        return self._rows

    @property
    def _plan(self) -> StagePlan:
        return self._row_folder.plan

    @property
    def _model_taps(self) -> ModelTaps:
        if self._taps is None:
            raise RuntimeError("patch_level has not seen the start of a fit.")
        return self._taps


def _step(state: State) -> int:
    # The trainer logs a step's loss before it advances its clock: the two belong on one line.
    return int(state.timestamp.batch.value) - 1


def _has_token_rows(batch: Any) -> bool:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return isinstance(ids, torch.Tensor) and ids.dim() == 2
