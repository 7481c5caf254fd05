"""Parquet files, row group by row group, without holding more than a batch of rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_indexing.errors import DataError

ERRORS = (pa.ArrowException, OSError)
_BATCH_ROWS = 512


def row_group_bytes(path: Path) -> list[int]:
    """Compressed size of each row group."""
    metadata = _open(path).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return [sum(group.column(number).total_compressed_size for number in range(group.num_columns)) for group in groups]


def first_row(path: Path, group: int) -> int:
    """Rows before a row group."""
    metadata = _open(path).metadata
    return sum(metadata.row_group(number).num_rows for number in range(group))


def read_rows(path: Path, field: str, *, groups: range) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Batches of a string column, a.b for one inside a struct: the UTF-8 bytes, and each row's length or -1 for null.

    DataError where there is no such column of strings; pyarrow's errors where the file is damaged.
    """
    with _open(path) as file:
        _check_column(file, path, field)
        # The column chunks are read piece by piece: a row group may be larger than the memory.
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=list(groups), columns=[field], use_threads=False):
            yield _flatten(_descend(batch, field))


def _open(path: Path) -> Any:
    try:
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except ERRORS as error:
        raise DataError(f"{path}: {str(error).splitlines()[0]}; give a whole Parquet file") from None


def _check_column(file: Any, path: Path, field: str) -> None:
    found = {file.schema.column(number).path: file.schema.column(number) for number in range(len(file.schema))}
    column = found.get(field)
    if column is None:
        raise DataError(f"{path}: no column {field!r} (found {', '.join(found)}); see --text-field")
    if column.physical_type != "BYTE_ARRAY":
        raise DataError(f"{path}: column {field!r} is {column.physical_type}, not a string; see --text-field")


def _descend(batch: pa.RecordBatch, field: str) -> Any:
    first, *rest = field.split(".") if field not in batch.schema.names else [field]
    column = batch.column(first)
    for name in rest:
        column = pc.struct_field(column, name)
    return column


def _flatten(column: Any) -> tuple[bytes, tuple[int, ...]]:
    values = pc.cast(column, pa.large_binary())
    lengths = pc.fill_null(pc.binary_length(values), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
    data = values.buffers()[2]
    begin, end = (int(offsets[0]), int(offsets[-1])) if len(values) else (0, 0)
    text = bytes(memoryview(data)[begin:end]) if data is not None else b""
    if len(text) != lengths[lengths > 0].sum():
        # A null may own bytes.
        text = b"".join(item for item in values.to_pylist() if item is not None)
    return text, tuple(lengths.tolist())
