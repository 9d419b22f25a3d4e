"""Rows on disk, and the length that a loader is asked for: kept, cut or refused.

The rules of the data loader ``pile``, which checks before a run go by, too.
"""

from __future__ import annotations

__all__ = ["cuts_long_rows", "is_train", "pieces_of_row"]


def is_train(split: object) -> bool:
    """Whether a split is for training, as one without a name is taken to be."""
    return not split or str(split).startswith("train")


def cuts_long_rows(long_rows: object, split: object, key: str) -> bool:
    """Whether rows that are longer than asked for are cut; otherwise they are refused.

    Args:
        long_rows: The key of that name, ``refuse`` or ``cut``; without it the split's name decides.
        split: The split.
        key: The configuration key of the dataset, for messages.

    Raises:
        ValueError: If ``long_rows`` is something else.
    """
    asked = long_rows or ("refuse" if is_train(split) else "cut")
    if asked not in ("refuse", "cut"):
        raise ValueError(f"{key}.long_rows is {asked!r}; expected refuse or cut.")
    return asked == "cut"


def pieces_of_row(row: int, asked: int, cut: bool, key: str) -> int:
    """Rows of the length that is asked for in one row of the dataset.

    Args:
        row: Tokens in a row of the dataset.
        asked: The loader's ``max_seq_len``.
        cut: Whether longer rows are cut.
        key: The configuration key of the dataset, for messages.

    Raises:
        ValueError: If the rows are too short, too long, or cannot be cut without losing tokens.
    """
    if row == asked:
        return 1
    if row < asked:
        raise ValueError(
            f"{key}.max_seq_len is {asked}, but the rows have {row} tokens. Set it to {row}, or convert the "
            f"data to longer rows (`patch-level data convert`, --row-tokens, --val-row-tokens)."
        )
    if not cut:
        raise ValueError(
            f"{key}.max_seq_len is {asked}, but the rows have {row} tokens, and llm-foundry would drop the "
            f"last {row - asked} of each. Set it to {row}, the length of a row: patch_level cuts rows "
            f"itself, for every k and seq_len whose product divides {row}. For evaluation, set "
            f"{key}.long_rows: cut."
        )
    if row % asked:
        divisor = next(n for n in range(asked, 0, -1) if row % n == 0)
        raise ValueError(
            f"{key}.max_seq_len is {asked}, but the rows have {row} tokens, not a multiple of it: they "
            f"cannot be cut without losing tokens. Set it to a divisor of {row} such as {divisor}, or "
            f"convert the data with --val-row-tokens {asked}."
        )
    return row // asked
