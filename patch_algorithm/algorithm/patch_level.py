"""The Composer algorithm: decides by the clock, calls the pure functions, and logs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from composer.core import Algorithm, Event, State, Time, Timestamp
from composer.loggers import Logger

from patch_algorithm.algorithm.batch_checks import check_positions
from patch_algorithm.algorithm.compatibility import refuse_company, refuse_company_of_patches
from patch_algorithm.algorithm.loss_metrics import LossTally
from patch_algorithm.algorithm.optimizer_reset import ON_SWITCH, refuse_unresettable, reset_moments
from patch_algorithm.algorithm.row_folding import RowFolder
from patch_algorithm.algorithm.stage_memory import StageMemory
from patch_algorithm.algorithm.switch_checkpoint import SwitchSaver
from patch_algorithm.common.announce import announce
from patch_algorithm.common.arguments import a_bool, one_of, positive_int
from patch_algorithm.loss.cross_entropy import patch_cross_entropy
from patch_algorithm.loss.weights import TARGET_WEIGHTS, target_weights
from patch_algorithm.model_access.hooks import ModelTaps
from patch_algorithm.model_access.reading import context_length, unwrap
from patch_algorithm.model_access.support import refuse_unsupported
from patch_algorithm.patching.batches import PATCH_TARGETS
from patch_algorithm.stages.boundaries import parse_boundary, parse_stages
from patch_algorithm.stages.plan import ON_MISMATCH, Sides, StageClock, StagePlan
from patch_algorithm.stages.timeline import Timeline
from patch_algorithm.stages.trainer_clock import (
    max_duration,
    next_step,
    raw_tokens,
    raw_tokens_of_last_step,
    share_of_run,
)

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
        self.target_weights = one_of("target_weights", target_weights, TARGET_WEIGHTS)
        self.patch_inputs = a_bool("patch_inputs", patch_inputs)
        self.patch_targets = a_bool("patch_targets", patch_targets)
        self.on_switch = one_of("on_switch", on_switch, ON_SWITCH)
        self.rehearse_switch = a_bool("rehearse_switch", rehearse_switch)
        self.scale_microbatch = a_bool("scale_microbatch", scale_microbatch)
        self.checkpoint_at_switch = a_bool("checkpoint_at_switch", checkpoint_at_switch)
        self.on_mismatch = one_of("on_mismatch", on_mismatch, ON_MISMATCH)
        self._asked = self._parse_stages(stages)
        self.stages = None if stages is None else [dict(stage) for stage in stages]
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
        self._timeline = Timeline(self._asked, self.seq_len, self.on_mismatch)
        self._rows = RowFolder(self._timeline, Sides(self.patch_inputs, self.patch_targets))
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
        return self._timeline.in_patch_stage

    @property
    def switch_point(self) -> Time[int] | None:
        """Where the last patch stage ends, on the trainer's clock; ``None`` before the first fit."""
        return self._timeline.plan.switch if self._timeline.is_settled else None

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
        return self._timeline.clock(state)

    def plan_for(self, length: Time[int] | None) -> StagePlan | None:
        """The stages of a new run of a given length.

        Args:
            length: The run's length in batches, samples or tokens; ``None`` if it is not known yet.

        Returns:
            The plan; ``None`` if it depends on a length that is not known.

        Raises:
            ValueError: If stages are out of order in a run of this length.
        """
        return self._timeline.plan_for(length)

    def match(self, event: Event, state: State) -> bool:
        """Whether there is something to do; after the switch that is cutting rows and logging."""
        return event in (_PATCH_STAGE_EVENTS if self.in_patch_stage else _TOKEN_STAGE_EVENTS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Does what belongs to ``event``."""
        getattr(self, f"_on_{event.value}")(state, logger)

    def state_dict(self) -> dict[str, Any]:
        """What the run has settled on, in primitives."""
        return {
            **super().state_dict(),
            **self._timeline.state_dict(),
            "spared_tokens": self._spared_tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a checkpoint's plan; it is compared with the configuration when fit starts."""
        self._timeline.load_state_dict(state)
        self._spared_tokens = state.get("spared_tokens", 0.0)

    def _on_init(self, state: State, logger: Logger) -> None:
        if self._taps is not None:
            self._taps.detach()
        self._saver.detach()
        self._forget_run()  # of another trainer
        refuse_company(state, PatchLevel)
        if self._asked:
            refuse_company_of_patches(state)
            refuse_unsupported(unwrap(state.model))

    def _on_fit_start(self, state: State, logger: Logger) -> None:
        model = unwrap(state.model)
        if self._taps is None:
            self._taps = ModelTaps(model)
        self._timeline.settle(state)
        plan = self._timeline.plan
        if plan.seq_len is not None:
            check_positions(plan.seq_len, context_length(model))
        self._rows.start_fit()
        self._memory.restore(state)
        self._warned_of_no_switch = False
        if state.timestamp.batch == 0:
            self._spared_tokens = 0.0  # the clock may have been set back
        self._timeline.enter(next_step(state), state.timestamp)
        if not self.in_patch_stage:
            self._taps.detach()  # from a fit that broke off
            return
        refuse_unsupported(model)
        if self._timeline.never_switches(state):
            self._warn_of_no_switch(state)
        if self.checkpoint_at_switch:
            self._saver.attach(state.callbacks)
        # Folded batches would need k copies of the logits in the model's own train metrics.
        if self._metrics_aside is None:  # else they still are, from a fit that broke off
            self._metrics_aside, state.train_metrics = state.train_metrics, {}
        self._taps.attach()

    def _warn_of_no_switch(self, state: State) -> None:
        if self._warned_of_no_switch:
            return
        self._warned_of_no_switch = True
        switch, end = self._timeline.plan.stages[-1].until, max_duration(state)
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
        state.batch = self._rows.fold(raw_batch, self._timeline.stage, state)
        self._positions_per_row = state.batch["input_ids"].shape[1]
        if self.in_patch_stage:
            self._memory.prepare(state, self._rows, raw_batch, self._positions_per_row)

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
            self._spared_tokens += tokens - tokens / self._rows.tokens_per_position(self._timeline.stage)
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
                "patch_level/k": self._timeline.k,
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
        left = self._timeline.k
        if not self._timeline.advance(clock, state.timestamp):
            return
        self._memory.restore(state)
        if self.on_switch == "reset":
            for optimizer in state.optimizers:
                reset_moments(optimizer)
        self._saver.request(state)
        batch, moments = state.timestamp.batch.value, "reset" if self.on_switch == "reset" else "carried over"
        if self.in_patch_stage:
            announce(
                f"patch_level: the stage of k={left} ends at batch {batch}; k={self._timeline.k} from "
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
