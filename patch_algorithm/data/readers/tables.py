"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from patch_algorithm.data.readers.blocks import Block, Lost, Position, Row, SourceDamage, cut_rows
from patch_algorithm.data.readers.decompression import DAMAGED
from patch_algorithm.data.readers.source import COMPONENT, FileSource, Reading

__all__ = ["TableSource"]

_TABLE_BUFFER = 2**20
_TABLE_BATCH = 1024


@dataclass(frozen=True)
class TableSource(FileSource):
    """A Parquet file with a column of texts."""

    place: str = "row"

    def blocks(self, start: Position, reading: Reading) -> Iterator[Block]:
        """Reads from a row to the end."""
        import pyarrow as pa

        share = 0.0
        try:
            rows, total = _table_rows(self.path, start.offset, reading)
        except (pa.ArrowException, OSError) as error:
            _check_readable(error)
            raise SourceDamage(DAMAGED, f"it cannot be read as Parquet: {error}") from error
        size = self.size() or 0
        for block in cut_rows(rows, start, reading.block_bytes):
            # Tables are read by column: the share of the rows stands for the share of the bytes.
            until = block.end.number / total
            yield replace(block, read_bytes=int(size * until) - int(size * share))
            share = until


def _table_rows(path: Path, skipped: int, reading: Reading) -> tuple[Iterator[Row], int]:
    import pyarrow.parquet as pq

    # Through a buffer: a row group may be larger than memory, and would be read as a whole otherwise.
    table = pq.ParquetFile(path, buffer_size=_TABLE_BUFFER, pre_buffer=False, page_checksum_verification=True)
    schema, footer = table.schema_arrow, table.metadata
    if reading.text_field not in schema.names:
        raise SourceDamage(
            "without text", f"it has no column {reading.text_field!r}, only {', '.join(schema.names)}"
        )
    groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    def rows() -> Iterator[Row]:
        before = skipped
        for group, size in enumerate(groups):
            if before < size:
                yield from islice(_group_rows(table, group, reading), before, None)
            before -= min(before, size)

    return rows(), sum(groups)


def _group_rows(table: Any, group: int, reading: Reading) -> Iterator[Row]:
    # From its first row, whatever was read before: rows are read in the same batches again, so that the
    # same ones are lost with a damaged page.
    import pyarrow as pa

    footer = table.metadata.row_group(group)
    row_bytes = max(1, footer.total_byte_size // max(1, footer.num_rows))
    at_once = max(1, min(_TABLE_BATCH, reading.block_bytes // row_bytes))
    columns = [reading.text_field, ".".join(COMPONENT)]
    whole, why = 0, "its row group is shorter than the file says"
    try:
        for batch in table.iter_batches(batch_size=at_once, row_groups=[group], columns=columns):
            yield from _batch_rows(batch, reading.text_field)
            whole += len(batch)
    except (pa.ArrowException, OSError) as error:
        _check_readable(error)
        why = f"its row group cannot be read as Parquet from there on: {error}"
    for _ in range(footer.num_rows - whole):
        yield Row(Lost(why, row_bytes))


def _check_readable(error: Exception) -> None:
    """Raises what the system says of a file; what Arrow itself says of its content has no number."""
    if isinstance(error, OSError) and error.errno:
        raise error


def _batch_rows(batch: Any, text_field: str) -> Iterator[Row]:
    import pyarrow as pa

    labels: list[Any] = [None] * len(batch)
    field, name = COMPONENT
    meta = batch.column(field) if field in batch.schema.names else None
    if meta is not None and pa.types.is_struct(meta.type) and meta.type.get_field_index(name) >= 0:
        labels = _as_bytes(meta.flatten()[meta.type.get_field_index(name)]).to_pylist()
    for text, label in zip(_as_bytes(batch.column(text_field)).to_pylist(), labels, strict=True):
        yield Row(text, (label.decode(errors="replace") or None) if isinstance(label, bytes) else None)


def _as_bytes(column: Any) -> Any:
    """Strings as bytes: that they are UTF-8 in a table is nothing but a claim."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    for kind, as_bytes in ((pa.string(), pa.binary()), (pa.large_string(), pa.large_binary())):
        if column.type == kind:
            return column.cast(as_bytes)
    return column
