"""What a run will be, read from its YAML; nothing is built or trained.

:class:`RunFile` is loaded on first use: the command line imports this package for its help text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patch_algorithm.planning.run_file import DataSection, Loader, ModelSection, Named, RunFile

__all__ = ["DataSection", "Loader", "ModelSection", "Named", "RunFile"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from patch_algorithm.planning import run_file

        return getattr(run_file, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
