"""Streams of text: hashed on the way, decompressed, cut into whole lines."""

import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

CHUNK_BYTES = 1 << 20
# What these become is in memory at once, at worst some thousand times as much.
_ZSTD_BYTES = 1 << 14
# The largest there is (zstd --long=31): such a file takes as much memory, if it is as large.
_ZSTD_WINDOW_BYTES = 1 << 31


class Stream(Protocol):
    """Anything that gives up to so many bytes, none at its end."""

    def read(self, size: int, /) -> bytes:
        """Next bytes."""
        ...


class DamagedError(Exception):
    """Compressed data that cannot be read on."""


class HashedStream(io.RawIOBase):
    """A raw file from where it stands, up to `size` bytes of it, that keeps count and SHA-256 of what was read."""

    def __init__(self, raw: io.FileIO, size: int | None = None) -> None:
        """`raw` stays the caller's."""
        self._raw = raw
        self._left = size
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the file goes."""
        view = memoryview(buffer) if self._left is None else memoryview(buffer)[: self._left - self.num_bytes]
        count = self._raw.readinto(view) or 0
        self._sha256.update(view[:count])
        self.num_bytes += count
        return count

    def hexdigest(self) -> str:
        """SHA-256 of what was read so far."""
        return self._sha256.hexdigest()


def decompress(stream: HashedStream, compression: str | None) -> Stream:
    """The text in a stream; what it raises for damaged data is a DamagedError."""
    if compression is None:
        return stream
    return _Decompressed(_open(stream, compression), stream)


def read_lines(stream: Stream, position: int, *, limit: int) -> Iterator[tuple[bytearray | None, int]]:
    """Whole lines in pieces of about CHUNK_BYTES with the position behind each, None for a line of more than `limit` bytes.

    A line only just above the limit may also be in a piece.
    """
    carry = bytearray()
    searched = 0
    while True:
        block = stream.read(CHUNK_BYTES)
        carry += block
        size = carry.rfind(b"\n", searched) + 1 if block else len(carry)
        searched = len(carry) - size
        if size:
            position += size
            rest = carry[size:]
            del carry[size:]
            # A large piece is the caller's alone.
            whole = [carry]
            carry = rest
            yield whole.pop(), position
        elif len(carry) > limit:
            passed, carry = _pass_line(stream, len(carry))
            searched = 0
            position += passed
            yield None, position
        if not block:
            return


def find_line_start(raw: io.FileIO, offset: int) -> int:
    """First byte at or after `offset` where a line begins, or the size of the file."""
    if offset == 0:
        return 0
    place = raw.seek(offset - 1)
    while block := raw.read(1 << 16):
        found = block.find(b"\n")
        if found >= 0:
            return place + found + 1
        place += len(block)
    return place


def skip(stream: Stream, count: int) -> None:
    """Pass over so many bytes, or to the end."""
    while count > 0 and (block := stream.read(min(count, CHUNK_BYTES))):
        count -= len(block)


def exhaust(stream: HashedStream) -> None:
    """Read to the end."""
    while stream.read(CHUNK_BYTES):
        pass


class _Decompressed:
    """Gives all there is before the place of a damage, then raises."""

    def __init__(self, stream: Any, source: HashedStream) -> None:
        self._stream = stream
        self._source = source
        self._damage: DamagedError | None = None

    def read(self, size: int, /) -> bytes:
        blocks: list[bytes] = []
        while size and self._damage is None and (block := self._read_some(size)):
            blocks.append(block)
            size -= len(block)
        if self._damage is not None and not blocks:
            raise self._damage
        return b"".join(blocks)

    def _read_some(self, size: int) -> bytes:
        try:
            block = bytes(self._stream.read1(size))
            if self._source.num_bytes == 0:
                raise EOFError("an empty file")
            return block
        except (EOFError, OSError, zlib.error, lzma.LZMAError, _zstd_error()) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self._damage = DamagedError(str(error))
            return b""


class _ZstdFile:
    """Frames of zstd one behind the other; the package's own reader takes a file that was cut short for a whole one."""

    def __init__(self, stream: Stream) -> None:
        import zstandard

        self._stream = stream
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj
        self._frame: Any = None
        self._data = b""

    def read1(self, size: int) -> bytes:
        while not self._data:
            packed = self._frame.unused_data if self._frame and self._frame.eof else b""
            packed = packed or self._stream.read(_ZSTD_BYTES)
            if not packed:
                if self._frame and not self._frame.eof:
                    raise EOFError("ended before the end of a frame")
                return b""
            if self._frame is None or self._frame.eof:
                self._frame = self._new_frame()
            self._data = self._frame.decompress(packed)
        data, self._data = self._data[:size], self._data[size:]
        return data


def _open(stream: HashedStream, compression: str) -> Any:
    buffered = io.BufferedReader(stream, 1 << 20)
    if compression == "gzip":
        return gzip.GzipFile(fileobj=buffered)
    if compression == "xz":
        return lzma.LZMAFile(buffered)
    return _ZstdFile(buffered)


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


def _pass_line(stream: Stream, passed: int) -> tuple[int, bytearray]:
    """Read on to the end of a line of which `passed` bytes are read; returns its length and what was read behind it."""
    while block := stream.read(CHUNK_BYTES):
        cut = block.find(b"\n") + 1
        if cut:
            return passed + cut, bytearray(block[cut:])
        passed += len(block)
    return passed, bytearray()
