"""Lines of JSON of many megabytes, without any Python object but the text: pyarrow's parser passes over all the rest.

Python's objects for a line take up to twenty times its size, and a string four bytes a character where there is one emoji.
"""

from typing import Any

import pyarrow as pa
from pyarrow import json

from data_indexing.pieces import is_utf8

# Of the reasons that pyarrow gives, what says more of pyarrow than of the line.
_PREFIX, _SUFFIX = "JSON parse error: ", " in row 0"


def read_large_text(line: bytes | memoryview, field: str) -> memoryview:
    """Text of the field as UTF-8, a.b for one inside another; ValueError says why there is none.

    pyarrow is stricter than the standard library: NaN, lone surrogates anywhere and keys given twice are errors.
    """
    # Anything but an object at the top brings pyarrow 26 down.
    if not is_utf8(line) or bytes(line[:64]).lstrip()[:1] != b"{":
        raise ValueError("not UTF-8, or no object")
    try:
        batch = _parse(line, field)
    except (pa.ArrowException, OverflowError) as error:
        reason = str(error).splitlines()[0].removeprefix(_PREFIX).removesuffix(_SUFFIX)
        raise ValueError(f"not JSON with a string in {field!r} ({reason})") from None
    if batch.num_rows != 1:
        raise ValueError(f"not JSON ({batch.num_rows} objects in a line)")
    found = [text for text in _candidates(batch, field) if text.is_valid]
    if not found:
        raise ValueError(f"field {field!r} is missing or null; see --text-field")
    return memoryview(found[0].as_buffer())


def _parse(line: bytes | memoryview, field: str) -> Any:
    options = json.ParseOptions(explicit_schema=pa.schema(_fields(field)), unexpected_field_behavior="ignore")
    whole = json.ReadOptions(use_threads=False, block_size=len(line) + 1)
    # The other pools keep what is freed.
    pool = pa.system_memory_pool()
    return json.open_json(pa.BufferReader(line), read_options=whole, parse_options=options, memory_pool=pool).read_next_batch()


def _fields(field: str) -> list[Any]:
    """The field by its whole name and, where that has dots, as one inside others."""
    first, *rest = field.split(".")
    kind = pa.string()
    for name in reversed(rest):
        kind = pa.struct([(name, kind)])
    return [pa.field(field, pa.string()), *([pa.field(first, kind)] if rest else [])]


def _candidates(batch: Any, field: str) -> list[Any]:
    first, *rest = field.split(".")
    found = batch.column(first)[0] if rest else None
    for name in rest:
        found = found[name] if found is not None and found.is_valid else None
    return [batch.column(field)[0], *([found] if found is not None else [])]
