"""Lines of JSON that hold a text of many megabytes, without the whole text as a Python string.

Such a string takes up to four bytes a character, more than the bound on memory allows. Strings of JSON can be told apart
without reading the rest, for nothing else holds a quotation mark: the large ones are cut out, the small line that remains is
read as any other, and the text is turned to UTF-8 piece by piece.
"""

import codecs
import re
from collections.abc import Iterator
from secrets import token_hex
from typing import Any

import orjson

LARGE_LINE_BYTES = 16 << 20
_LARGE_STRING_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
# Where a string may be cut: before a sign or the first byte of a character that no escape holds, or before an escape which is
# not the second half of a pair.
_CUT = re.compile(rb"(?<!\\)(?:[ ,.;:!?()\xc2-\xf4]|\\u(?![dD][c-fC-F]))")


def read_large_text(line: bytes, keys: list[str]) -> bytes | None:
    """Text of the field as UTF-8, or None where it is small, missing or wrong: then the usual way says what it is."""
    small, spans = _cut_out(line)
    try:
        value: Any = orjson.loads(small)
        for key in keys:
            value = value[key]
        span = spans.get(value)
        return b"".join(_pieces(line, *span)) if span else None
    except (ValueError, LookupError, TypeError):
        return None


def decode_pieces(text: bytes) -> Iterator[str]:
    """A large text piece by piece; UnicodeDecodeError where it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(text), _PIECE_BYTES):
        yield decoder.decode(text[start : start + _PIECE_BYTES], final=start + _PIECE_BYTES >= len(text))


def is_utf8(text: bytes) -> bool:
    """Whether a large text can be decoded."""
    try:
        return all(piece is not None for piece in decode_pieces(text))
    except UnicodeDecodeError:
        return False


def _cut_out(line: bytes) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The line with a name in place of each large string, and where in the line each of them was, without its quotes."""
    parts = []
    spans = {}
    done = 0
    # No text can hold what nobody knows before.
    nonce = token_hex()
    for match in _STRING.finditer(line):
        start, end = match.span()
        if end - start > _LARGE_STRING_BYTES:
            name = f"{nonce} {start}"
            spans[name] = (start + 1, end - 1)
            parts.append(line[done:start] + orjson.dumps(name))
            done = end
    return b"".join([*parts, line[done:]]), spans


def _pieces(line: bytes, start: int, end: int) -> Iterator[bytes]:
    """UTF-8 of a string, cut where neither a character nor an escape is."""
    while start < end:
        found = _CUT.search(line, min(start + _PIECE_BYTES, end), end)
        cut = found.start() if found else end
        text: str = orjson.loads(b'"' + line[start:cut] + b'"')
        yield text.encode()
        start = cut
