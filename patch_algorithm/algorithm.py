"""The Composer algorithm: decides by the clock, calls the pure functions, and logs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from composer.algorithms.warnings import NoEffectWarning
from composer.core import Algorithm, Event, State, Time
from composer.loggers import Logger

from patch_algorithm.banner import announce, banner
from patch_algorithm.checks import (
    check_batch,
    check_microbatch,
    check_positions,
    check_rows,
    refuse_company,
    refuse_documents,
)
from patch_algorithm.clock import (
    dataloader_len,
    max_duration,
    next_step,
    raw_tokens,
    raw_tokens_of_last_step,
    share_of_run,
)
from patch_algorithm.loss import patch_cross_entropy
from patch_algorithm.model_taps import ModelTaps, context_length, refuse_unsupported, unwrap
from patch_algorithm.patching import PATCH_TARGETS, cut_batch, fold_batch
from patch_algorithm.stages import (
    ON_MISMATCH,
    StagePlan,
    in_batches,
    is_below,
    parse_ratio,
    run_length,
    settle,
)
from patch_algorithm.tally import LossTally

__all__ = ["PatchLevel"]

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
        on_mismatch (str, optional): Where a checkpoint disagrees with the configuration in ``k``, the
            switch point or ``seq_len``: ``'error'``, ``'use_checkpoint'`` or ``'use_config'``. A stage once
            left is never entered again. Default: ``'error'``.

    Raises:
        ValueError: For arguments that are not of these kinds; when training starts, for models, rows
            and durations that cannot be trained so, before any weight changes.

    Example:
        .. code-block:: python

            from composer import Trainer
            from patch_algorithm import PatchLevel

            trainer = Trainer(model, ..., algorithms=[PatchLevel(k=4, ratio=0.67)])
    """

    def __init__(
        self,
        k: int = 4,
        ratio: float | str = 2 / 3,
        seq_len: int | None = None,
        on_mismatch: str = "error",
    ) -> None:
        self.k = _positive_int("k", k)
        self.ratio = ratio
        self.seq_len = None if seq_len is None else _positive_int("seq_len", seq_len)
        if on_mismatch not in ON_MISMATCH:
            raise ValueError(f"on_mismatch={on_mismatch!r} is none of {', '.join(ON_MISMATCH)}.")
        self.on_mismatch = on_mismatch
        self._ratio = parse_ratio(ratio)
        self._forget_run()

    def _forget_run(self) -> None:
        self._plan: StagePlan | None = None
        self._left_patch_stage = False
        self._spared_tokens = 0.0  # of token-level training, so far
        self._in_patch_stage = False
        self._taps: ModelTaps | None = None
        self._metrics_aside: dict[str, Any] | None = None
        self._row_lengths: set[int] = set()
        self._announced = False
        self._warned_of_no_switch = False
        self._positions_per_row = 0
        self._compute_share = 1.0
        self._tally = LossTally()

    def __repr__(self) -> str:
        return (
            f"PatchLevel(k={self.k!r}, ratio={self.ratio!r}, seq_len={self.seq_len!r}, "
            f"on_mismatch={self.on_mismatch!r})"
        )

    @property
    def in_patch_stage(self) -> bool:
        """Whether the present or, between steps, the next step is a patch step."""
        return self._in_patch_stage

    @property
    def switch_point(self) -> Time[int] | None:
        """Where the patch stage ends, on the trainer's clock; ``None`` before the first fit."""
        return None if self._plan is None else self._plan.switch

    @property
    def positions_per_row(self) -> int:
        """Positions of each row the model was last given."""
        return self._positions_per_row

    @property
    def compute_share(self) -> float:
        """Positions computed so far as a share of token-only training on the same raw tokens."""
        return self._compute_share

    def match(self, event: Event, state: State) -> bool:
        """Whether there is something to do; after the switch that is cutting rows and logging."""
        return event in (_PATCH_STAGE_EVENTS if self._in_patch_stage else _TOKEN_STAGE_EVENTS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Does what belongs to ``event``."""
        getattr(self, f"_on_{event.value}")(state, logger)

    def state_dict(self) -> dict[str, Any]:
        """What the run has settled on, in primitives."""
        plan = {} if self._plan is None else self._plan.state_dict()
        return {
            **super().state_dict(),
            **plan,
            "left_patch_stage": self._left_patch_stage,
            "spared_tokens": self._spared_tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a checkpoint's plan; it is compared with the configuration when fit starts."""
        if "switch" in state:
            self._plan = StagePlan.from_state_dict(state)
        self._left_patch_stage = state.get("left_patch_stage", False)
        self._spared_tokens = state.get("spared_tokens", 0.0)

    def _on_init(self, state: State, logger: Logger) -> None:
        if self._taps is not None:
            self._taps.detach()
        self._forget_run()  # of another trainer
        refuse_company(state, PatchLevel)
        if self._patches:
            refuse_unsupported(unwrap(state.model))

    @property
    def _patches(self) -> bool:
        zero = self._ratio.value == 0 if isinstance(self._ratio, Time) else self._ratio == 0
        return self.k > 1 and not zero

    def _on_fit_start(self, state: State, logger: Logger) -> None:
        model = unwrap(state.model)
        if self._taps is None:
            self._taps = ModelTaps(model)
        self._plan = settle(
            self.k, self._ratio, self.seq_len, self._run_length(state), self._plan, self.on_mismatch
        )
        if self._plan.seq_len is not None:
            check_positions(self._plan.seq_len, context_length(model))
        self._row_lengths = set()
        self._warned_of_no_switch = False
        if state.timestamp.batch == 0:
            self._spared_tokens = 0.0  # the clock may have been set back
        below = self._plan.k > 1 and is_below(state.timestamp, self._plan.switch)
        self._in_patch_stage = below and not self._left_patch_stage
        if below and self._left_patch_stage:
            warnings.warn(
                f"The switch is at {self._plan.switch.to_timestring()}, but the patch stage was left before "
                "and is not entered again. Start a new run from the weights (load_weights_only) for another.",
                stacklevel=2,
            )
        if not self._in_patch_stage:
            self._left_patch_stage = True
            self._taps.detach()  # from a fit that broke off
            return
        refuse_unsupported(model)
        self._warn_if_never_switching(state)
        # Folded batches would need k copies of the logits in the model's own train metrics.
        if self._metrics_aside is None:  # else they still are, from a fit that broke off
            self._metrics_aside, state.train_metrics = state.train_metrics, {}
        self._taps.attach()

    def _run_length(self, state: State) -> Time[int] | None:
        if isinstance(self._ratio, Time):
            return None
        return run_length(max_duration(state), dataloader_len(state))

    def _warn_if_never_switching(self, state: State) -> None:
        switch, end = self._settled_plan.switch, max_duration(state)
        batches = dataloader_len(state)
        if batches is not None and switch.unit != end.unit:
            switch, end = in_batches(switch, batches), in_batches(end, batches)
        if switch.unit == end.unit and switch >= end:
            self._warn_of_no_switch(state)

    def _warn_of_no_switch(self, state: State) -> None:
        if self._warned_of_no_switch:
            return
        self._warned_of_no_switch = True
        warnings.warn(
            f"The switch at {self._settled_plan.switch.to_timestring()} is not before the end of the run at "
            f"{max_duration(state).to_timestring()}: the run ends as a patch model, which cannot generate. "
            "Lower ratio, or resume the run with a longer max_duration.",
            stacklevel=3,
        )

    def _on_after_dataloader(self, state: State, logger: Logger) -> None:
        if self._in_patch_stage and not is_below(state.timestamp, self._settled_plan.switch):
            self._leave_patch_stage(state)
        if not self._in_patch_stage:
            self._give_metrics_back(state)
            if not _has_token_rows(state.batch):
                return
        else:
            check_batch(state.batch)
        if state.batch["input_ids"].shape[1] not in self._row_lengths:
            self._on_new_row_length(state)
        state.batch = self._cut_and_fold(state)
        self._positions_per_row = state.batch["input_ids"].shape[1]

    def _cut_and_fold(self, state: State) -> Any:
        batch = state.batch
        k = self._settled_plan.k if self._in_patch_stage else 1
        longest = k * self._positions_for(batch["input_ids"].shape[1], state)
        too_long = batch["input_ids"].shape[1] > longest
        if too_long or self._in_patch_stage:
            refuse_documents(batch, unwrap(state.model))
        if too_long:
            batch = cut_batch(batch, longest)
        return fold_batch(batch, k) if self._in_patch_stage else batch

    def _positions_for(self, T: int, state: State) -> int:
        """The positions L that rows of T tokens are cut to; settles them on the way."""
        L, from_rows = self._settled_plan.seq_len, self._settled_plan.seq_len_from_rows
        if L is None or (from_rows and T > L):
            context = context_length(unwrap(state.model))
            L = T if context is None else min(T, context)
            from_rows = context is None or T <= context
            self._plan = replace(self._settled_plan, seq_len=L, seq_len_from_rows=from_rows)
        return L

    def _on_new_row_length(self, state: State) -> None:
        """Checks rows of a length not seen before; padded batches come in several."""
        batch = state.batch
        T = batch["input_ids"].shape[1]
        L = self._positions_for(T, state)
        k = self._settled_plan.k if self._in_patch_stage else 1
        if k > 1 or T > L:
            check_batch(batch)
            padded = "attention_mask" in batch
            check_rows(T, k, L, padded, first=not self._row_lengths)
            if padded and T > L:
                check_microbatch(T // L, state.device_train_microbatch_size, unwrap(state.model))
        elif not self._patches and not self._row_lengths:
            warnings.warn(
                f"patch_level(k={self.k}, ratio={self.ratio!r}) has no effect: it trains at token level, and "
                f"rows of {T} tokens need no cutting to seq_len={L}.",
                NoEffectWarning,
                stacklevel=2,
            )
        self._row_lengths.add(T)
        if not self._announced:
            announce(banner(self._settled_plan, T, self._in_patch_stage, max_duration(state)))
            self._announced = True

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
        loss = patch_cross_entropy(outputs["logits"], state.batch[PATCH_TARGETS])
        self._model_taps.replace_loss(loss.mean, outputs)
        self._tally.add(loss)

    def _on_after_loss(self, state: State, logger: Logger) -> None:
        self._model_taps.restore_loss()

    def _on_after_backward(self, state: State, logger: Logger) -> None:
        self._model_taps.disarm()

    def _on_batch_end(self, state: State, logger: Logger) -> None:
        tokens = raw_tokens_of_last_step(state)
        if self._in_patch_stage:
            self._spared_tokens += tokens - tokens / self._settled_plan.k
            logger.log_metrics(self._tally.metrics(), step=_step(state))
        self._log_progress(state, logger, tokens)
        if self._in_patch_stage and not is_below(next_step(state), self._settled_plan.switch):
            self._leave_patch_stage(state)

    def _log_progress(self, state: State, logger: Logger, tokens: int) -> None:
        self._compute_share = 1 - self._spared_tokens / max(raw_tokens(state.timestamp), 1)
        seconds = state.timestamp.batch_wct.total_seconds()
        logger.log_metrics(
            {
                "patch_level/stage": 0 if self._in_patch_stage else 1,
                "patch_level/k": self._settled_plan.k if self._in_patch_stage else 1,
                "patch_level/positions_per_row": self._positions_per_row,
                "patch_level/share_of_run": share_of_run(state),
                "patch_level/raw_tokens_per_sec": tokens / seconds if seconds > 0 else 0.0,
                "patch_level/compute_share": self._compute_share,
            },
            step=_step(state),
        )

    def _on_epoch_end(self, state: State, logger: Logger) -> None:
        if not is_below(state.timestamp, self._settled_plan.switch):
            self._leave_patch_stage(state)

    def _on_fit_end(self, state: State, logger: Logger) -> None:
        if self._in_patch_stage:
            self._warn_of_no_switch(state)
        self._model_taps.detach()
        self._give_metrics_back(state)

    def _leave_patch_stage(self, state: State) -> None:
        self._in_patch_stage = False
        self._left_patch_stage = True
        self._model_taps.detach()
        announce(
            f"patch_level: the patch stage ends at batch {state.timestamp.batch.value}; "
            "token stage from here on."
        )

    def _give_metrics_back(self, state: State) -> None:
        # Not at the switch itself: at the end of an epoch the trainer would compute metrics that no
        # token step has updated.
        if self._metrics_aside is not None:
            state.train_metrics, self._metrics_aside = self._metrics_aside, None

    @property
    def _settled_plan(self) -> StagePlan:
        if self._plan is None:
            raise RuntimeError("patch_level has not seen the start of a fit.")
        return self._plan

    @property
    def _model_taps(self) -> ModelTaps:
        if self._taps is None:
            raise RuntimeError("patch_level has not seen the start of a fit.")
        return self._taps


def _positive_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} is not a whole number of at least 1.")
    return value


def _step(state: State) -> int:
    # The trainer logs a step's loss before it advances its clock: the two belong on one line.
    return int(state.timestamp.batch.value) - 1


def _has_token_rows(batch: Any) -> bool:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return isinstance(ids, torch.Tensor) and ids.dim() == 2
