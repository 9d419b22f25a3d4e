"""Checks of the length of rows, and of batches of them.

Letters: k tokens per patch, L the model's context in positions, T raw tokens in a training row.
"""

from __future__ import annotations

from dataclasses import dataclass

from patch_algorithm.checks.finding import Finding, finding

__all__ = ["BatchFacts", "RowFacts", "check_batches", "check_eval_rows", "check_row_length"]


@dataclass(frozen=True)
class RowFacts:
    """The rows of a run in patches.

    Attributes:
        T: Raw tokens in a row.
        L: Positions the model is trained on; ``None`` if not known.
        K: The most raw tokens that a position of any patch stage reads.
        last_K: Those of the last patch stage.
        rehearsed: Whether the token stage is tried before the first step.
        key: The key that T comes from.
    """

    T: int
    L: int | None
    K: int
    last_K: int
    rehearsed: bool = True
    key: str = "train_loader.dataset.max_seq_len"


def check_row_length(rows: RowFacts) -> list[Finding]:
    """Checks whether rows are of k * L tokens, so that positions stay L in all stages."""
    if rows.K == 1:
        return []
    if rows.L is None:
        return [
            finding(
                "rows-not-cut",
                "Neither algorithms.patch_level.seq_len nor the model's context is known here; rows have "
                f"{rows.T} tokens.",
                f"If the model takes rows of {rows.T} positions, the token stage trains on them whole, and "
                f"memory for a row grows {rows.last_K}-fold at the switch.",
                "Set algorithms.patch_level.seq_len to the positions that the model is to be trained on.",
            )
        ]
    T, L, before = rows.T, rows.L, -(-rows.T // rows.K)
    if before >= L:
        return []
    after, wanted = min(T, L), rows.K * L
    found = [
        finding(
            "rows-of-context",
            f"{rows.key}={T}: the patch stage trains on {before} positions per row, the token stage on "
            f"{after}.",
            f"Rows of k * L = {wanted} tokens keep both at {L}. At 370M parameters rows of L tokens cost "
            "0.06 perplexity (arXiv 2407.12665, section on context length), and memory for a row grows "
            f"{after / before:.3g}-fold at the switch.",
            f"Convert the data with --row-tokens {wanted}, set {rows.key}: {wanted}, and divide "
            f"global_train_batch_size by {wanted / T:.3g}, so that a step keeps its number of tokens.",
        )
    ]
    if not rows.rehearsed:
        found.append(
            finding(
                "switch-not-rehearsed",
                f"algorithms.patch_level.rehearse_switch is false, and positions per row grow from {before} "
                f"to {after} at the switch.",
                "If the token stage does not fit into memory, the run fails at the switch, perhaps days "
                "after its start.",
                "Remove rehearse_switch: one token-stage microbatch is then run before the first step.",
            )
        )
    return found


def check_eval_rows(key: str, eval_tokens: int | None, context: int | None) -> list[Finding]:
    """Checks the rows of an eval loader, which are not cut, against the model's context.

    Args:
        key: The key of the loader's dataset.
        eval_tokens: Its ``max_seq_len``.
        context: The model's context; ``None`` if not known.
    """
    if eval_tokens is None or context is None or eval_tokens <= context:
        return []
    return [
        finding(
            "eval-rows-beyond-context",
            f"{key}.max_seq_len={eval_tokens}, but the model's context is {context}.",
            "Evaluation is at token level and its rows are not cut, so a row has more positions than the "
            "model takes.",
            f"Set it to {context}.",
        )
    ]


@dataclass(frozen=True)
class BatchFacts:
    """Batches of a run.

    Attributes:
        global_batch: ``global_train_batch_size``.
        microbatch: ``device_train_microbatch_size``.
        processes: Processes that share the batch.
    """

    global_batch: int | None
    microbatch: int | float | str | None
    processes: int = 1


def check_batches(batches: BatchFacts) -> list[Finding]:
    """Checks that processes can share a batch, and that microbatches are rows."""
    found: list[Finding] = []
    rows, micro = batches.global_batch, batches.microbatch
    if isinstance(micro, float) and not micro.is_integer():
        found.append(
            finding(
                "microbatch-not-whole",
                f"device_train_microbatch_size={micro:g}.",
                "Patch-level training splits batches into whole rows; Composer refuses parts of one.",
                "Set it to a whole number, or auto on a GPU.",
            )
        )
    if rows is None:
        return found
    if rows % batches.processes:
        return [
            *found,
            finding(
                "batch-not-divisible",
                f"global_train_batch_size={rows} with {batches.processes} processes.",
                "llm-foundry refuses a batch that the processes cannot share evenly.",
                f"Set it to a multiple of {batches.processes}.",
            ),
        ]
    share = rows // batches.processes
    if isinstance(micro, int) and micro > share:
        found.append(
            finding(
                "microbatch-larger-than-batch",
                f"device_train_microbatch_size={micro}; a device has {share} rows of the batch.",
                f"llm-foundry lowers it to {share}.",
                "Nothing, unless the batch was meant to be larger.",
            )
        )
    return found
