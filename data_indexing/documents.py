"""From a chunk to texts: each line or row is a text, empty, or rejected for a reason.

orjson reads what it can; what it refuses is read again by the standard library, which is more lenient (NaN, lone
surrogates elsewhere in the line) and says what is wrong.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import orjson

from data_indexing.chunks import Chunk, read_chunk, too_large
from data_indexing.pieces import LARGE_LINE_BYTES, Text, is_utf8

_NAMED_KEYS = 8


class Reject(NamedTuple):
    """A document that cannot be used: its number within the chunk, from 1, and why.

    Where a damaged file is why, it is the first of `num_damaged` documents.
    """

    number: int
    reason: str
    num_damaged: int = 0


@dataclass(frozen=True)
class Documents:
    """What a chunk holds; `num_read` counts the texts, the rejects, the empty documents and those lost by damage."""

    texts: list[Text]
    rejects: list[Reject]
    num_read: int


def read_documents(chunk: Chunk, field: str, *, limit: int) -> Documents:
    """Texts of a chunk, none of them empty; `field` is that of lines, a.b for one inside another."""
    found = _read(chunk, field, limit)
    num_read = len(found)
    if chunk.fault is not None:
        found.append(_Refusal(chunk.fault.reason, chunk.fault.num_damaged))
        num_read += max(1, chunk.fault.num_damaged)
    texts = [item for item in found if item and not isinstance(item, _Refusal)]
    rejects = []
    if len(texts) < len(found):
        rejects = [Reject(number, *item) for number, item in enumerate(found, start=1) if isinstance(item, _Refusal)]
    return Documents(texts, rejects, num_read)


class _Refusal(NamedTuple):
    reason: str
    num_damaged: int = 0


def _read(chunk: Chunk, field: str, limit: int) -> list[Text | _Refusal]:
    data = read_chunk(chunk)
    if chunk.lengths is not None:
        return list(_rows(memoryview(data), chunk.lengths, limit))
    if len(data) > min(limit, LARGE_LINE_BYTES):
        return [_line_of_any_size(line, field, limit) for line in _cut_lines(data)]
    return _lines(data, field)


def _lines(data: bytes | bytearray, field: str) -> list[Text | _Refusal]:
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    # What is wrong with any of them is found out below.
    with suppress(ValueError, LookupError, TypeError):
        texts = [orjson.loads(line)[field] for line in lines]
        if set(map(type, texts)) <= {str}:
            return texts
    return [_line(line, field) for line in lines]


def _cut_lines(data: bytes | bytearray) -> Iterator[memoryview]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        yield memoryview(data)[start:end]
        start = end + 1


def _line_of_any_size(line: memoryview, field: str, limit: int) -> Text | _Refusal:
    if len(line) > limit:
        return _Refusal(too_large(limit))
    if len(line) <= LARGE_LINE_BYTES:
        return _line(bytes(line), field)
    # Imported here: pyarrow is large, and few inputs need it.
    from data_indexing.large_lines import read_large_text

    try:
        return read_large_text(line, field)
    except ValueError as error:
        return _Refusal(str(error))


def _line(line: bytes | bytearray, field: str) -> str | _Refusal:
    try:
        return _descend(orjson.loads(line), field)
    except (ValueError, LookupError, TypeError):
        return _lenient(line, field)


def _lenient(line: bytes | bytearray, field: str) -> str | _Refusal:
    try:
        if not line.strip():
            return ""
        text = _descend(json.loads(line.decode("utf-8")), field)
        text.encode("utf-8")
    except UnicodeDecodeError as error:
        return _Refusal(f"not UTF-8 at byte {error.start} of the line")
    except UnicodeEncodeError as error:
        return _Refusal(f"field {field!r} holds a lone surrogate at character {error.start}")
    except json.JSONDecodeError as error:
        return _Refusal(f"not JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        return _Refusal(str(error))
    return text


def _descend(value: Any, field: str) -> str:
    """The text under a key of the whole name or, where there is none, in one object after the other."""
    keys = [field] if isinstance(value, dict) and field in value else field.split(".")
    for key in keys:
        if not isinstance(value, dict):
            raise ValueError(f"not an object that could hold {key!r}, but {type(value).__name__}")
        if key not in value:
            found = ", ".join(map(repr, islice(value, _NAMED_KEYS))) or "nothing"
            raise ValueError(f"field {field!r} is missing (found {found}); see --text-field")
        value = value[key]
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is {type(value).__name__}, not a string")
    return value


def _rows(data: memoryview, lengths: tuple[int, ...], limit: int) -> Iterator[Text | _Refusal]:
    start = 0
    for length in lengths:
        yield _row(data[start : start + max(length, 0)], length, limit)
        start += max(length, 0)


def _row(raw: memoryview, length: int, limit: int) -> Text | _Refusal:
    if length < 0:
        return _Refusal("null, not a string")
    if length > limit:
        return _Refusal(too_large(limit))
    try:
        return raw if length > LARGE_LINE_BYTES and is_utf8(raw) else str(raw, "utf-8")
    except UnicodeDecodeError as error:
        return _Refusal(f"not UTF-8 at byte {error.start}")
