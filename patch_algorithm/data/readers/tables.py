"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from patch_algorithm.data.readers.blocks import Block, Lost, Position, Row, SourceDamage, cut_rows
from patch_algorithm.data.readers.decompression import DAMAGED
from patch_algorithm.data.readers.fields import component_fields, usable_label
from patch_algorithm.data.readers.source import FileSource, Reading

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
            yield replace(block, read_bytes=int(size * until) - int(size * share), split=self.split)
            share = until


def _table_rows(path: Path, skipped: int, reading: Reading) -> tuple[Iterator[Row], int]:
    import pyarrow.parquet as pq

    # Through a buffer: a row group may be larger than memory, and would be read as a whole otherwise.
    table = pq.ParquetFile(path, buffer_size=_TABLE_BUFFER, pre_buffer=False, page_checksum_verification=True)
    schema, footer = table.schema_arrow, table.metadata
    columns = [name for name in _columns(reading) if _top(schema, name) is not None]
    _check_columns(schema, columns, reading.text_field, footer.num_rows)
    groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    def rows() -> Iterator[Row]:
        before = skipped
        for group, size in enumerate(groups):
            if before < size:
                yield from islice(_group_rows(table, group, columns, reading), before, None)
            before -= min(before, size)

    return rows(), sum(groups)


def _columns(reading: Reading) -> list[str]:
    return [reading.text_field, *component_fields(reading.component_field)]


def _top(schema: Any, field: str) -> str | None:
    """The column that holds a field, of which a dot may lead into a column of structs."""
    if field in schema.names:
        return field
    top, *inside = field.split(".")
    if not inside or top not in schema.names:
        return None
    kind = schema.types[schema.names.index(top)]
    for name in inside:
        names = [kind.field(i).name for i in range(kind.num_fields)] if _is_struct(kind) else []
        if name not in names:
            return None
        kind = kind.field(names.index(name)).type
    return top


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind)


def _check_columns(schema: Any, columns: Sequence[str], text_field: str, rows: int) -> None:
    if text_field not in columns:
        raise SourceDamage(
            "without text", f"it has no column {text_field!r}, only {', '.join(schema.names)}", rows
        )
    for name in columns:
        if (number := schema.names.count(_top(schema, name))) > 1:
            detail = f"it has {number} columns {_top(schema, name)!r}, of which one may be wrong"
            raise SourceDamage("ambiguous column", detail, rows)


def _group_rows(table: Any, group: int, columns: list[str], reading: Reading) -> Iterator[Row]:
    # From its first row, whatever was read before: rows are read in the same batches again, so that the
    # same ones are lost with a damaged page.
    import pyarrow as pa

    footer = table.metadata.row_group(group)
    row_bytes = max(1, footer.total_byte_size // max(1, footer.num_rows))
    at_once = max(1, min(_TABLE_BATCH, reading.block_bytes // row_bytes))
    whole, why = 0, "its row group is shorter than the file says"
    try:
        for batch in table.iter_batches(batch_size=at_once, row_groups=[group], columns=columns):
            yield from _batch_rows(batch, columns, reading)
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


def _batch_rows(batch: Any, columns: Sequence[str], reading: Reading) -> Iterator[Row]:
    values = {name: _as_bytes(_column(batch, name)).to_pylist() for name in columns}
    texts = values.pop(reading.text_field)
    labels: list[str | None] = [None] * len(batch)
    for field, own in reversed(values.items()):
        for row, label in enumerate(own):
            name = label.decode(errors="replace") if isinstance(label, bytes) else label
            if usable_label(name, field, reading.component_field):
                labels[row] = name
    yield from map(Row, texts, labels)


def _column(batch: Any, field: str) -> Any:
    top = _top(batch.schema, field)
    column = batch.column(top)
    for name in field.removeprefix(str(top)).split(".")[1:]:
        column = column.flatten()[column.type.get_field_index(name)]
    return column


def _as_bytes(column: Any) -> Any:
    """Strings as bytes: that they are UTF-8 in a table is nothing but a claim."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    for kind, as_bytes in ((pa.string(), pa.binary()), (pa.large_string(), pa.large_binary())):
        if column.type == kind:
            return column.cast(as_bytes)
    return column
