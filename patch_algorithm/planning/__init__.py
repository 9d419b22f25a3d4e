"""What a run will be, read from its YAML; nothing is built or trained."""

from __future__ import annotations

from patch_algorithm.planning.run_file import DataSection, Loader, ModelSection, Named, RunFile

__all__ = ["DataSection", "Loader", "ModelSection", "Named", "RunFile"]
