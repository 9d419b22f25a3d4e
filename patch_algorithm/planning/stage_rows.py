"""Whether the rows of a run can be cut and folded in each of its stages.

Letters: L the model's context in positions, T raw tokens in a training row.
"""

from __future__ import annotations

from patch_algorithm.algorithm.batch_checks import check_positions, check_rows
from patch_algorithm.planning.run_file import RunFile

__all__ = ["check_stages"]

# Loaders whose rows all have the length that their dataset is asked for, and whether they may be padded:
# 'text' pads where its shards hold text instead of tokens, which the configuration does not say.
_LOADERS_OF_WHOLE_ROWS = {"text": True, "pile": False}


def check_stages(run: RunFile) -> None:
    """Checks ``seq_len`` against the model, and the length of the rows against every stage.

    Raises:
        ValueError: If they do not fit; it names the full key.
    """
    if run.algorithm is None:
        return
    if run.algorithm.seq_len is not None:
        try:
            check_positions(run.algorithm.seq_len, run.model.context)
        except ValueError as error:
            raise ValueError(f"algorithms.patch_level.{error}") from error
    padded = _LOADERS_OF_WHOLE_ROWS.get(str(run.train_loader.name))
    if run.plan is None or run.T is None or run.L is None or padded is None:
        return
    for index in range(len(run.plan.stages)):
        try:
            check_rows(run.T, run.plan.tokens_per_position(index), run.L, padded)
        except ValueError as error:
            raise ValueError(f"{run.train_loader.dataset.key}.max_seq_len={run.T}: {error}") from error
