"""Algorithms and callbacks that cannot run together with patch-level training."""

from __future__ import annotations

from composer.algorithms import Alibi, LabelSmoothing, SeqLengthWarmup
from composer.callbacks import EarlyStopper, ThresholdStopper
from composer.core import Algorithm, State

__all__ = ["check_other_algorithms", "check_others_in_patch_stages"]


def check_other_algorithms(state: State, kind: type[Algorithm]) -> None:
    """Refuses what cannot run together with the algorithm of type ``kind``.

    Raises:
        ValueError: For a second instance, SeqLengthWarmup and tensor parallelism.
    """
    if sum(isinstance(algorithm, kind) for algorithm in state.algorithms) > 1:
        raise ValueError("There are two patch_level algorithms; one run has one switch. Keep one of them.")
    if any(isinstance(algorithm, SeqLengthWarmup) for algorithm in state.algorithms):
        raise ValueError(
            "patch_level cannot run together with SeqLengthWarmup: both change the length of rows. "
            "Remove SeqLengthWarmup."
        )
    if state.tp_config is not None:
        raise ValueError(
            "patch_level does not support tensor parallelism (tp_config): it has not been shown to give the "
            "results of data parallelism. Use FSDP or DDP."
        )


def check_others_in_patch_stages(state: State) -> None:
    """Refuses algorithms and callbacks that cannot run in a patch stage.

    Raises:
        ValueError: For algorithms that need second derivatives, LabelSmoothing, an Alibi that shortens
            rows, and callbacks that stop a run by its train metrics.
    """
    for algorithm in state.algorithms:
        if algorithm.backwards_create_graph:
            raise ValueError(
                f"patch_level cannot run together with {type(algorithm).__name__}: it needs second "
                "derivatives, which the patch loss does not have. Remove it, or train at token level (k: 1)."
            )
        if isinstance(algorithm, LabelSmoothing):
            raise ValueError(
                "patch_level cannot run together with LabelSmoothing: it smooths labels, which the patch "
                "loss does not read. Remove LabelSmoothing."
            )
        if isinstance(algorithm, Alibi) and algorithm.train_sequence_length_scaling != 1:
            raise ValueError(
                f"patch_level cannot run together with an Alibi of train_sequence_length_scaling="
                f"{algorithm.train_sequence_length_scaling}: both change the length of rows. Set it to 1."
            )
    for callback in state.callbacks:
        if isinstance(callback, (EarlyStopper, ThresholdStopper)) and callback.dataloader_label == "train":
            raise ValueError(
                f"{type(callback).__name__} watches the train metric {callback.monitor!r}, which is not "
                "computed in the patch stage. Set dataloader_label to 'eval'."
            )
