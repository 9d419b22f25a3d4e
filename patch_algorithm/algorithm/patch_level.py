"""The Composer algorithm: its arguments, and Composer's interface to the run of each trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from composer.core import Algorithm, Event, State, Time
from composer.loggers import Logger

from patch_algorithm.algorithm.compatibility import check_other_algorithms, check_others_in_patch_stages
from patch_algorithm.algorithm.loss_kernel import prepare_kernel
from patch_algorithm.algorithm.optimizer_reset import ON_SWITCH
from patch_algorithm.algorithm.patch_run import PatchRun, Settings
from patch_algorithm.common.arguments import a_bool, one_of, positive_int
from patch_algorithm.loss import LOSS_KERNELS, checked_target_weights
from patch_algorithm.model_access import detach_hooks, refuse_unsupported, unwrap
from patch_algorithm.stages.boundaries import Boundary, parse_boundary, parse_stages
from patch_algorithm.stages.forecast import trainers_state
from patch_algorithm.stages.plan import ON_MISMATCH, Sides, StageClock, StagePlan

__all__ = ["PatchLevel"]

_DEFAULT_K = 4
_DEFAULT_RATIO = "2/3"


@dataclass
class _Runs:
    """The runs of all trainers that one :class:`PatchLevel` was given to.

    Attributes:
        latest: The one of the latest event.
        by_state: A trainer's run by the trainer's state.
    """

    latest: PatchRun
    by_state: WeakKeyDictionary[State, PatchRun] = field(default_factory=WeakKeyDictionary)


class PatchLevel(Algorithm):
    """Patch-level training (Shao, Meng and Zhou, ICLR 2025, arXiv 2407.12665).

    For a first share of the run each position reads a patch, the mean of ``k`` consecutive token
    embeddings, and predicts all ``k`` tokens of the next patch with one softmax. Then the run switches
    to ordinary next-token training and ends as an ordinary model. No parameter is added.

    Runs on :attr:`.Event.AFTER_DATALOADER`, where rows longer than ``k * seq_len`` tokens are cut and
    all rows are folded into patches (by then the trainer has counted raw samples and tokens), and on
    :attr:`.Event.BEFORE_LOSS`, where the K-target loss replaces the model's own. In the token stage it
    only cuts rows longer than ``seq_len``. Evaluation, prediction, generation and export see an ordinary
    token-level model at any time.

    Every step logs ``patch_level/`` ``stage`` (counted from 0; the last is the token stage), ``k``,
    ``positions_per_row``, ``share_of_run`` and ``compute_share`` (positions computed so far as a share of
    token-only training on the same rows). Patch steps also log ``loss``, ``perplexity`` and
    ``token_accuracy``, which are not comparable with the token stage's. The model's own train metrics
    are not computed in the patch stage.

    One object may be given to several trainers, each of which has its own run. Every trainer but the first
    puts a copy of it into ``trainer.state.algorithms``, so that each saves and loads its own run. The
    properties of the object describe the run with the latest event; those of a copy, its trainer's run.

    Args:
        k (int, optional): Tokens per patch. ``1`` trains at token level throughout. Default: ``4``.
        ratio (float | str, optional): The share of the run that is trained in patches, as a fraction of
            ``max_duration`` (``0.67``, or exactly ``'2/3'``), or a Composer time string (``'90000ba'``,
            ``'0.67dur'``). Resolved once, when the first fit starts, and saved with the run. ``0`` trains at
            token level throughout. Default: ``'2/3'``, the paper's.
        seq_len (int, optional): Positions the model is trained on. Rows of ``k * seq_len`` tokens are
            the paper's setting. Default: the model's own maximum if rows exceed it, else the length of
            the rows.
        stages (list, optional): Several patch stages instead of ``k`` and ``ratio``, in their order:
            ``[{k: 8, until: 0.3dur}, {k: 4, until: 0.6dur}]``, then token level. Rows longer than
            ``k * seq_len`` are cut to it in each stage. Default: one stage of ``k`` until ``ratio``.
        target_weights (str | list[float], optional): How much each token of the next patch counts in the
            loss: ``'uniform'``; ``'inverse'``, which is ``1 / i`` for the i-th token (better by 0.002 nats
            from ``k=10`` on, by the published ablation); or ``k`` numbers, which are scaled to a mean of 1.
            Default: ``'uniform'``.
        loss_kernel (str, optional): What computes the loss: ``'torch'`` (any device), ``'triton'`` (fused
            kernels, CUDA only), or ``'auto'``, which is torch until the fused kernels have been timed on a
            GPU. Default: ``'auto'``.
        patch_inputs (bool, optional): If ``False``, positions read single tokens. That saves no compute;
            it is meant for ablations and for runs with little data. Default: ``True``.
        patch_targets (bool, optional): If ``False``, positions predict only the next token.
            Default: ``True``.
        on_switch (str, optional): What happens to the optimizer's state at the end of each patch
            stage: ``'carry'`` or ``'reset'``. Default: ``'carry'``.
        rehearse_switch (bool, optional): Whether to run one token-stage microbatch before the first
            step if rows have more positions after the switch, so that running out of memory shows at
            once. Default: ``True``.
        scale_microbatch (bool, optional): Whether microbatches hold more rows in the patch stage, in
            proportion to the fewer positions per row. Ignored if ``device_train_microbatch_size`` is
            ``'auto'``. With FSDP it is worth setting if rows already fit the context: weights are
            gathered for every microbatch, however few positions it has. Default: ``False``.
        checkpoint_at_switch (bool, optional): Whether the run's checkpoint savers also save at the end of
            each patch stage. Default: ``True``.
        eval_at_switch (bool, optional): Whether the run's evaluators also evaluate there, unless they are
            switched off (``eval_interval: 0``). Default: ``True``.
        constant_compute (bool, optional): Whether a patch step takes ``k`` batches of the data loader, so
            that it computes as many positions as a token step, as in token superposition (arXiv
            2605.06546). If ``max_duration`` is in batches, ``ratio`` is then that paper's share of steps.
            With ``False`` every step takes one batch, as in the patch-level paper. Default: ``False``.
        on_mismatch (str, optional): What to do if the stages or ``seq_len`` of a checkpoint differ from the
            configuration: ``'error'``, ``'use_checkpoint'`` or ``'use_config'``. A stage that a run has
            left is never entered again. Default: ``'error'``.

    Raises:
        ValueError: For invalid arguments. When training starts, before any weight changes: for models,
            rows and durations that cannot be trained in patches.
        RehearsalError: If the token stage will not fit in memory.

    Example:
        .. code-block:: python

            from composer import Trainer
            from patch_algorithm import PatchLevel

            trainer = Trainer(model, ..., algorithms=[PatchLevel(k=4, ratio="2/3")])
    """

    def __init__(
        self,
        k: int = _DEFAULT_K,
        ratio: float | str = _DEFAULT_RATIO,
        seq_len: int | None = None,
        stages: Sequence[Mapping[str, Any]] | None = None,
        target_weights: str | Sequence[float] = "uniform",
        loss_kernel: str = "auto",
        patch_inputs: bool = True,
        patch_targets: bool = True,
        on_switch: str = "carry",
        rehearse_switch: bool = True,
        scale_microbatch: bool = False,
        checkpoint_at_switch: bool = True,
        eval_at_switch: bool = True,
        on_mismatch: str = "error",
        constant_compute: bool = False,
    ) -> None:
        self.k = positive_int("k", k)
        self.ratio = ratio
        self.seq_len = None if seq_len is None else positive_int("seq_len", seq_len)
        self.loss_kernel = one_of("loss_kernel", loss_kernel, LOSS_KERNELS)
        self.patch_inputs = a_bool("patch_inputs", patch_inputs)
        self.patch_targets = a_bool("patch_targets", patch_targets)
        self.on_switch = one_of("on_switch", on_switch, ON_SWITCH)
        self.rehearse_switch = a_bool("rehearse_switch", rehearse_switch)
        self.scale_microbatch = a_bool("scale_microbatch", scale_microbatch)
        self.checkpoint_at_switch = a_bool("checkpoint_at_switch", checkpoint_at_switch)
        self.eval_at_switch = a_bool("eval_at_switch", eval_at_switch)
        self.constant_compute = a_bool("constant_compute", constant_compute)
        self.on_mismatch = one_of("on_mismatch", on_mismatch, ON_MISMATCH)
        self._asked = self._parse_stages(stages)
        self.stages = None if stages is None else [dict(stage) for stage in stages]
        if not patch_inputs and not patch_targets:
            raise ValueError(
                "patch_inputs and patch_targets are both false, which is token-level training: set k=1."
            )
        ks = [k if patch_targets else 1 for k, _ in self._asked]
        self.target_weights = checked_target_weights(target_weights, ks)
        self._runs = _Runs(self._new_run())
        self._trainer: ReferenceType[State] | None = None
        self._is_copy = False  # of an object that another trainer holds

    def _parse_stages(self, stages: object) -> tuple[tuple[int, Boundary], ...]:
        end = parse_boundary(self.ratio)
        if stages is not None:
            if (self.k, self.ratio) != (_DEFAULT_K, _DEFAULT_RATIO):
                raise ValueError(
                    f"Both stages and k={self.k}, ratio={self.ratio!r} are given, but stages replaces "
                    "them. Remove one or the other."
                )
            return parse_stages(stages)
        length = end.value if isinstance(end, Time) else end
        return () if self.k == 1 or length == 0 else ((self.k, end),)

    def _new_run(self) -> PatchRun:
        return PatchRun(
            Settings(
                stages=self._asked,
                seq_len=self.seq_len,
                target_weights=self.target_weights,
                loss_kernel=self.loss_kernel,
                sides=Sides(self.patch_inputs, self.patch_targets),
                on_switch=self.on_switch,
                rehearse_switch=self.rehearse_switch,
                scale_microbatch=self.scale_microbatch,
                checkpoint_at_switch=self.checkpoint_at_switch,
                eval_at_switch=self.eval_at_switch,
                on_mismatch=self.on_mismatch,
                constant_compute=self.constant_compute,
            )
        )

    def __getstate__(self) -> dict[str, Any]:
        # Runs belong to trainers: a copy that a user makes starts with none of them.
        return {**vars(self), "_runs": _Runs(self._new_run()), "_trainer": None, "_is_copy": False}

    def __repr__(self) -> str:
        names = (
            "k", "ratio", "seq_len", "stages", "target_weights", "loss_kernel", "patch_inputs",
            "patch_targets", "on_switch", "rehearse_switch", "scale_microbatch", "checkpoint_at_switch",
            "eval_at_switch", "on_mismatch",
            "constant_compute",
        )  # fmt: skip
        return f"PatchLevel({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def _run(self) -> PatchRun:
        """The run that the properties describe."""
        return self._run_of_trainer if self._is_copy else self._runs.latest

    @property
    def _run_of_trainer(self) -> PatchRun:
        """The run that is saved and loaded: of the trainer that holds this very object."""
        state = None if self._trainer is None else self._trainer()
        return self._runs.latest if state is None else self._runs.by_state[state]

    @property
    def in_patch_stage(self) -> bool:
        """Whether the present or, between steps, the next step is a patch step."""
        return self._run.timeline.in_patch_stage

    @property
    def switch_point(self) -> Time[int] | None:
        """Where the last patch stage ends, on the trainer's clock; ``None`` before the first fit."""
        timeline = self._run.timeline
        return timeline.plan.switch if timeline.is_settled else None

    @property
    def positions_per_row(self) -> int:
        """Positions of each row the model was last given."""
        return self._run.positions_per_row

    @property
    def compute_share(self) -> float:
        """Positions computed so far as a share of token-only training on the same rows, of this rank."""
        return self._run.count.share

    def stage_clock(self, state: State) -> StageClock:
        """The stage that a step at the trainer's present clock belongs to.

        Available as soon as ``max_duration`` is known: learning rate schedulers ask before the first fit.

        Raises:
            ValueError: If the ends of stages cannot be determined in a run of this length.
        """
        return self._runs.by_state.get(trainers_state(state), self._run).timeline.clock(state)

    def plan_for(self, length: Time[int] | None) -> StagePlan | None:
        """The stages of a new run of a given length.

        Args:
            length: The run's length in batches, samples or tokens; ``None`` if it is not known yet.

        Returns:
            The plan; ``None`` if it depends on a length that is not known.

        Raises:
            ValueError: If stages are out of order in a run of this length.
        """
        return self._run.timeline.plan_for(length)

    def match(self, event: Event, state: State) -> bool:
        """Whether there is something to do; after the switch that is cutting rows and logging."""
        return event == Event.INIT or event in self._run_of(state).events

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Does what belongs to ``event``."""
        if event == Event.INIT:
            self._init(state)
        else:
            self._run_of(state).apply(event, state, logger)

    def state_dict(self) -> dict[str, Any]:
        """What the run has settled on, in primitives."""
        return {**super().state_dict(), **self._run_of_trainer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a checkpoint's plan; it is compared with the configuration when fit starts."""
        self._run_of_trainer.load_state_dict(state)

    def _init(self, state: State) -> None:
        self._begin_run(state)
        detach_hooks(unwrap(state.model))  # of another run, which broke off
        check_other_algorithms(state, PatchLevel)
        if self._asked:
            check_others_in_patch_stages(state)
            refuse_unsupported(unwrap(state.model), self.seq_len)
            prepare_kernel(self.loss_kernel, state.device.name)

    def _run_of(self, state: State) -> PatchRun:
        if state not in self._runs.by_state:  # added to a trainer that was there before
            self._begin_run(state)
        self._runs.latest = self._runs.by_state[state]
        return self._runs.latest

    def _begin_run(self, state: State) -> None:
        self._runs.latest = self._runs.by_state[state] = self._new_run()
        if self._trainer is None or self._trainer() in (None, state):
            self._trainer = ref(state)
            return
        # Composer asks an algorithm for its state without saying for whom.
        own = self._copy_for(state)
        state.algorithms = [own if algorithm is self else algorithm for algorithm in state.algorithms]

    def _copy_for(self, state: State) -> PatchLevel:
        own = object.__new__(type(self))
        vars(own).update(vars(self), _trainer=ref(state), _is_copy=True)
        return own
