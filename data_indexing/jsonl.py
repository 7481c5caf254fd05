"""JSON lines in pieces that workers can take: chunks of whole lines, and the texts in them."""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_indexing.errors import DataError
from data_indexing.manifest import InputFile

CHUNK_BYTES = 4 << 20
_NAMED_KEYS = 8


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file: the range to read or, where the file is compressed, the bytes themselves."""

    path: Path
    offset: int
    num_bytes: int
    data: bytes | None
    num_file_bytes: int
    """Bytes of the file as it lies on disk, for the progress bar."""
    fault: str | None = None
    """Why the file could not be read on from here."""


class BadLineError(Exception):
    """A line that holds no text: its number within the chunk, from 1, and the reason."""

    def __init__(self, number: int, reason: str) -> None:
        """Both are arguments of the exception, so that it can be pickled."""
        super().__init__(number, reason)
        self.number = number
        self.reason = reason


def check_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """Inputs as paths, once each exists, can be read and stands in the list only once."""
    paths = [Path(name) for name in inputs]
    for path in paths:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: not a regular file; give .jsonl or .jsonl.gz files")
        try:
            path.open("rb").close()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; give readable .jsonl or .jsonl.gz files") from None
        if paths.count(path) > 1:
            raise DataError(f"{path}: given {paths.count(path)} times; give each input once")
    return paths


def read_chunks(path: Path, sealed: list[InputFile]) -> Iterator[Chunk]:
    """Chunks of one file in order; at its end its size and hash are appended to `sealed`.

    The file is read and hashed here once, and read again by the worker, from the page cache, unless it is compressed.
    """
    compressed = path.suffix == ".gz"
    with path.open("rb", buffering=0) as raw:
        hashed = _HashedStream(raw)
        source: Any = gzip.GzipFile(fileobj=hashed) if compressed else hashed
        stream: io.BufferedIOBase = io.BufferedReader(source)
        offset = seen = 0
        fault = None
        while fault is None:
            data, fault = _read_lines(stream)
            if data or fault:
                kept = data if compressed else None
                yield Chunk(path, offset, len(data), kept, hashed.num_bytes - seen, fault)
            elif not data:
                break
            offset, seen = offset + len(data), hashed.num_bytes
    sealed.append(InputFile(path.name, hashed.num_bytes, hashed.sha256.hexdigest()))


def read_texts(chunk: Chunk, field: str) -> list[str]:
    """Text of each line of a chunk; BadLineError names the first that has none."""
    lines = _chunk_bytes(chunk).split(b"\n")
    if not lines[-1]:
        lines.pop()
    texts = [_text(line, field, number) for number, line in enumerate(lines, start=1)]
    if chunk.fault:
        raise BadLineError(len(lines) + 1, chunk.fault)
    return texts


class _HashedStream(io.RawIOBase):
    """A raw file that keeps count and hash of what was read."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._raw.readinto(buffer)
        self.sha256.update(memoryview(buffer)[:count])
        self.num_bytes += count
        return count


def _read_lines(stream: io.BufferedIOBase) -> tuple[bytes, str | None]:
    try:
        return stream.read(CHUNK_BYTES) + stream.readline(), None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return b"", f"gzip data damaged from about here ({error})"


def _chunk_bytes(chunk: Chunk) -> bytes:
    if chunk.data is not None:
        return chunk.data
    with chunk.path.open("rb") as stream:
        stream.seek(chunk.offset)
        return stream.read(chunk.num_bytes)


def _text(line: bytes, field: str, number: int) -> str:
    try:
        value = _descend(json.loads(line.decode("utf-8")), field)
        value.encode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLineError(number, f"not UTF-8 at byte {error.start} of the line") from None
    except UnicodeEncodeError as error:
        raise BadLineError(number, f"field {field!r} holds a lone surrogate at character {error.start}") from None
    except json.JSONDecodeError as error:
        raise BadLineError(number, f"not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise BadLineError(number, str(error)) from None
    return value


def _descend(value: Any, field: str) -> str:
    for key in field.split("."):
        if not isinstance(value, dict):
            raise ValueError(f"not an object that could hold {key!r}, but {type(value).__name__}")
        if key not in value:
            found = ", ".join(map(repr, islice(value, _NAMED_KEYS))) or "nothing"
            raise ValueError(f"field {field!r} is missing (found {found}); see --text-field")
        value = value[key]
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is {type(value).__name__}, not a string")
    return value
