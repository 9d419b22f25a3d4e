"""Files without documents, found before work begins."""

from __future__ import annotations

from collections.abc import Sequence

from patch_algorithm.data.readers.blocks import Position, SourceDamage
from patch_algorithm.data.readers.source import FileSource, Reading, Source

__all__ = ["check_not_empty"]

# As large as an empty Parquet file with the metadata of `datasets` may be.
_SMALL_FILE = 1 << 14
_MOST_NAMED = 10


def check_not_empty(sources: Sequence[Source], reading: Reading) -> None:
    """Checks that no small file is empty; a large one without a document is found when it is read.

    Raises:
        ValueError: If some are: they may be what is left of a download that failed.
    """
    found = [source.name for source in sources if _is_empty(source, reading)]
    if found:
        further = f" and {len(found) - _MOST_NAMED:,} more" if len(found) > _MOST_NAMED else ""
        raise ValueError(
            f"--source: {len(found):,} of {len(sources):,} files hold no documents: "
            f"{', '.join(found[:_MOST_NAMED])}{further}. Restore or remove them, or add --on-error skip."
        )


def _is_empty(source: Source, reading: Reading) -> bool:
    try:
        small = isinstance(source, FileSource) and (source.size() or 0) <= _SMALL_FILE
        return small and next(iter(source.blocks(Position(), reading)), None) is None
    # What cannot be read is reported by those who read it.
    except (SourceDamage, OSError):
        return False
