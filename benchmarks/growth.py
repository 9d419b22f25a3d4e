"""What a patch step costs with twice the tokens, twice the layers and twice the patch size."""

from __future__ import annotations

import argparse
import copy

from benchmarks.pairs import Comparison
from benchmarks.trainer_step import Make, compare, flops, patch_side

__all__ = ["measure"]


def measure(make: Make, deeper: Make, args: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
    """Patch steps at k of which one thing is doubled, against those of which nothing is."""
    more = copy.copy(args)
    more.rows = 2 * args.rows
    changed = {
        "twice the rows": lambda: patch_side(make, more, args.k),
        "twice the layers": lambda: patch_side(deeper, args, args.k),
        "twice the k, rows twice as long": lambda: patch_side(make, args, 2 * args.k),
    }
    found, notes = [], []
    for name, side in changed.items():
        left, right = side(), patch_side(make, args, args.k)
        found.append(
            compare(f"{make.__name__}: patch step, {name} / as it is", None, left, right, args.pairs)
        )
        notes.append(f"{name}: FLOPs {flops(left) / flops(right):.3f} times.")
        for trainer, _ in (left, right):
            trainer.close()
    return found, notes
