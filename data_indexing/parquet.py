"""Parquet files, row group by row group, without holding more than a page and some rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_indexing.errors import DataError

Rows = tuple[bytearray, tuple[int, ...]]
"""The UTF-8 bytes of some rows, and each row's length or -1 for null."""

_CHUNK_BYTES = 1 << 20
# A batch has a fixed number of rows, whatever their sizes: so many on average, and no more even where all are short, since
# values in a dictionary take no room in the file where they are repeated.
_BATCH_BYTES = 1 << 16
_BATCH_ROWS = 64


class ParquetDamageError(Exception):
    """Data of a row group that cannot be read."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of a file: its number, its rows and its compressed bytes, as the footer has them."""

    number: int
    num_rows: int
    num_bytes: int


def row_groups(path: Path) -> list[RowGroup]:
    """All row groups of a file."""
    metadata = _open(path).metadata
    return [_row_group(number, metadata.row_group(number)) for number in range(metadata.num_row_groups)]


def read_rows(path: Path, field: str, group: int) -> Iterator[Rows]:
    """Rows of a row group, from a string column, a.b for one inside a struct.

    DataError where there is no such column of strings; ParquetDamageError, after all that comes before it, for damaged data.
    """
    with _open(path) as file:
        _check_column(file, path, field)
        parts: list[bytes] = []
        lengths: list[int] = []
        try:
            for data, row_lengths in _read_batches(file, field, group):
                parts.append(data)
                lengths += row_lengths
                if sum(map(len, parts)) >= _CHUNK_BYTES:
                    yield bytearray().join(parts), tuple(lengths)
                    parts, lengths = [], []
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            yield bytearray().join(parts), tuple(lengths)
            raise ParquetDamageError(str(error).splitlines()[0]) from None
        yield bytearray().join(parts), tuple(lengths)


def _row_group(number: int, metadata: Any) -> RowGroup:
    num_bytes = sum(metadata.column(column).total_compressed_size for column in range(metadata.num_columns))
    return RowGroup(number, metadata.num_rows, num_bytes)


def _open(path: Path) -> Any:
    try:
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: {str(error).splitlines()[0]}; give a whole Parquet file") from None


def _check_column(file: Any, path: Path, field: str) -> None:
    found = {file.schema.column(number).path: file.schema.column(number) for number in range(len(file.schema))}
    column = found.get(field)
    if column is None:
        raise DataError(f"{path}: no column {field!r} (found {', '.join(found)}); see --text-field")
    if column.physical_type != "BYTE_ARRAY" or column.max_repetition_level:
        kind = "a list" if column.max_repetition_level else column.physical_type
        raise DataError(f"{path}: column {field!r} is {kind}, not a string; see --text-field")


def _read_batches(file: Any, field: str, group: int) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    metadata = file.metadata.row_group(group)
    columns = map(metadata.column, range(metadata.num_columns))
    size = next(column.total_uncompressed_size for column in columns if column.path_in_schema == field)
    num_rows = min(max(1, _BATCH_BYTES * metadata.num_rows // max(1, size)), _BATCH_ROWS)
    # The column chunk is read page by page: a row group may be larger than the memory.
    for batch in file.iter_batches(num_rows, row_groups=[group], columns=[field], use_threads=False):
        values = pc.cast(_descend(batch, field), pa.large_binary())
        step = len(values) if values.nbytes < _CHUNK_BYTES else 1
        for start in range(0, len(values), max(1, step)):
            yield _flatten(values.slice(start, step))


def _descend(batch: pa.RecordBatch, field: str) -> Any:
    first, *rest = field.split(".") if field not in batch.schema.names else [field]
    column = batch.column(first)
    for name in rest:
        column = pc.struct_field(column, name)
    return column


def _flatten(values: Any) -> tuple[bytes, tuple[int, ...]]:
    lengths = pc.fill_null(pc.binary_length(values), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
    data = values.buffers()[2]
    begin, end = (int(offsets[0]), int(offsets[-1])) if len(values) else (0, 0)
    text = bytes(memoryview(data)[begin:end]) if data is not None else b""
    if len(text) != lengths[lengths > 0].sum():
        # A null may own bytes.
        text = b"".join(item for item in values.to_pylist() if item is not None)
    return text, tuple(lengths.tolist())
