"""Settings of the property tests: the same examples on every machine and in every run."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("patch_algorithm", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("patch_algorithm")
