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
from data_indexing.encoders import Text
from data_indexing.large_lines import LARGE_LINE_BYTES, is_utf8, read_large_text

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
    if chunk.lengths is None:
        return _lines(read_chunk(chunk), field.split("."), limit)
    return list(_rows(read_chunk(chunk), chunk.lengths, limit))


def _lines(data: bytes, keys: list[str], limit: int) -> list[Text | _Refusal]:
    is_small = len(data) <= min(limit, LARGE_LINE_BYTES)
    lines = data.split(b"\n")
    del data
    if not lines[-1]:
        lines.pop()
    if len(keys) == 1 and is_small:
        # What is wrong with any of them is found out below.
        with suppress(ValueError, LookupError, TypeError):
            key = keys[0]
            texts = [orjson.loads(line)[key] for line in lines]
            if set(map(type, texts)) <= {str}:
                return texts
    return [_line(line, keys) if len(line) <= limit else _Refusal(too_large(limit)) for line in lines]


def _line(line: bytes, keys: list[str]) -> Text | _Refusal:
    if len(line) > LARGE_LINE_BYTES and (large := read_large_text(line, keys)):
        return large
    try:
        value = orjson.loads(line)
        for key in keys:
            value = value[key]
    except (ValueError, LookupError, TypeError):
        return _lenient(line, keys)
    return value if isinstance(value, str) else _lenient(line, keys)


def _lenient(line: bytes, keys: list[str]) -> str | _Refusal:
    field = ".".join(keys)
    try:
        if not line.strip():
            return ""
        text = _descend(json.loads(line.decode("utf-8")), keys)
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


def _descend(value: Any, keys: list[str]) -> str:
    field = ".".join(keys)
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


def _rows(data: bytes, lengths: tuple[int, ...], limit: int) -> Iterator[Text | _Refusal]:
    start = 0
    for length in lengths:
        yield _row(data[start : start + max(length, 0)], length, limit)
        start += max(length, 0)


def _row(raw: bytes, length: int, limit: int) -> Text | _Refusal:
    if length < 0:
        return _Refusal("null, not a string")
    if length > limit:
        return _Refusal(too_large(limit))
    try:
        return raw if length > LARGE_LINE_BYTES and is_utf8(raw) else raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return _Refusal(f"not UTF-8 at byte {error.start}")
