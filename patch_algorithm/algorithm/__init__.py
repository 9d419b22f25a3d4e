"""The Composer algorithm: reads the trainer's clock, calls the pure functions, and logs."""

from __future__ import annotations

from patch_algorithm.algorithm.patch_level import PatchLevel

__all__ = ["PatchLevel"]
