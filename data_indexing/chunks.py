"""Cut inputs into chunks that workers can take: whole lines or texts, in bounded memory, hashed on the way.

The bytes of plain files are read and hashed here once, and read again by the worker, from the page cache; those of
compressed and Parquet files travel with the chunk.
"""

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

from data_indexing.errors import DataError
from data_indexing.inputs import Segment
from data_indexing.manifest import InputFile, file_sha256
from data_indexing.text_streams import (
    CHUNK_BYTES,
    DamagedError,
    HashedStream,
    Stream,
    decompress,
    exhaust,
    find_line_start,
    read_lines,
    skip,
)

if TYPE_CHECKING:
    from data_indexing.parquet import RowGroup

Buffer = bytes | bytearray
Lengths = tuple[int, ...]


@dataclass(frozen=True)
class Fault:
    """Why something of a file cannot be read: one document, or, where the file is damaged, as many as can be told."""

    reason: str
    num_damaged: int = 0


@dataclass(frozen=True)
class Chunk:
    """Lines of JSON or, where `lengths` are given, texts of so many bytes, -1 for a null: a range of a file, or the bytes."""

    path: Path
    offset: int = 0
    num_bytes: int = 0
    data: Buffer | None = None
    lengths: Lengths | None = None
    fault: Fault | None = None
    """What comes after all this and cannot be read."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Let what may be large travel beside the pickle, without a copy."""
        data = PickleBuffer(self.data) if isinstance(self.data, bytearray) else self.data
        return Chunk, (self.path, self.offset, self.num_bytes, data, self.lengths, self.fault)


@dataclass(frozen=True)
class Place:
    """How far the inputs are done: the segment, and the byte of its text or its row; -1 at its end."""

    segment: int = 0
    position: int = 0


@dataclass(frozen=True)
class Cut:
    """A chunk, where it ends, the bytes it took on disk and, with the last one of a segment, the record of the file."""

    chunk: Chunk
    end: Place
    num_file_bytes: int
    sealed: InputFile | None = None


def cut_segments(segments: Sequence[Segment], field: str, *, limit: int, start: Place = Place()) -> Iterator[Cut]:
    """Chunks of all segments from a place on, in order; at least one a segment.

    `field` is the column of Parquet files, `limit` the bytes of the longest document that is read.
    """
    for number in range(start.segment, len(segments)):
        position = start.position if number == start.segment else 0
        if position >= 0:
            reader = _READERS[segments[number].source.kind](segments[number], field, limit)
            yield from _cut_segment(reader, number, position)


def read_chunk(chunk: Chunk) -> Buffer:
    """Bytes of a chunk."""
    if chunk.data is not None:
        return chunk.data
    with chunk.path.open("rb") as stream:
        stream.seek(chunk.offset)
        data = stream.read(chunk.num_bytes)
    if len(data) != chunk.num_bytes:
        raise DataError(f"{chunk.path}: {len(data)} bytes at {chunk.offset}, expected {chunk.num_bytes}; the file changed")
    return data


def too_large(limit: int) -> str:
    """Why a document is rejected that has more bytes than the limit."""
    return f"more than {limit} bytes; see --max-document-bytes"


def numbers_before(segment: Segment) -> int:
    """Lines or rows of a file before a segment of it."""
    if segment.source.kind == "parquet":
        from data_indexing.parquet import row_groups

        return sum(group.num_rows for group in row_groups(segment.source.path)[: segment.begin])
    if segment.begin == 0:
        return 0
    with segment.source.path.open("rb", buffering=0) as raw:
        end = find_line_start(raw, segment.begin)
        raw.seek(0)
        stream = HashedStream(raw, end)
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def _cut_segment(reader: "_Reader", number: int, position: int) -> Iterator[Cut]:
    """Keep one chunk back: the last one carries the record."""
    pending: Cut | None = None
    seen = 0
    for chunk, end in reader.read(position):
        if pending is not None:
            yield pending
        pending = Cut(chunk, Place(number, end), reader.num_file_bytes - seen)
        seen = reader.num_file_bytes
    last = pending or Cut(Chunk(reader.segment.source.path, data=b""), Place(), 0)
    rest = reader.num_file_bytes - seen
    yield replace(last, end=Place(number, -1), num_file_bytes=last.num_file_bytes + rest, sealed=reader.seal())


class _Reader:
    """Chunks of a segment with the position behind each, then the record of the file."""

    def __init__(self, segment: Segment, field: str, limit: int) -> None:
        self.segment = segment
        self.num_file_bytes = 0
        self._path = segment.source.path
        self._field = field
        self._limit = limit
        self._sha256 = ""
        self._part: tuple[int, int] | None = None

    def read(self, position: int) -> Iterator[tuple[Chunk, int]]:
        raise NotImplementedError

    def seal(self) -> InputFile:
        source = self.segment.source
        if self._part is None:
            return InputFile(source.name, source.num_bytes, self._sha256)
        first, end = self._part
        return InputFile(source.name, end - first, self._sha256, first_byte=first)


class _StreamReader(_Reader):
    """What plain and compressed files have in common."""

    def read(self, position: int) -> Iterator[tuple[Chunk, int]]:
        source = self.segment.source
        with self._path.open("rb", buffering=0) as raw:
            hashed = HashedStream(raw, self._enter(raw))
            try:
                stream = decompress(hashed, source.compression)
                skip(stream, position)
                for item in self._chunks(stream, position):
                    self.num_file_bytes = hashed.num_bytes
                    yield item
            except DamagedError as error:
                fault = Fault(f"{source.compression} data damaged from about here ({error})", num_damaged=1)
                yield Chunk(self._path, data=b"", fault=fault), -1
            exhaust(hashed)
        self.num_file_bytes = hashed.num_bytes
        self._sha256 = hashed.hexdigest()

    def _enter(self, raw: FileIO) -> int | None:
        """Go to the first line of the segment and return where its last one ends, None for the end of the file."""
        segment = self.segment
        if segment.source.compression or (segment.begin, segment.end) == (0, segment.source.num_bytes):
            return None
        first, end = find_line_start(raw, segment.begin), find_line_start(raw, segment.end)
        raw.seek(first)
        self._part = first, end
        return end - first

    @property
    def _first_byte(self) -> int:
        return self._part[0] if self._part else 0

    def _chunk(self, data: Buffer, position: int, lengths: Lengths | None = None) -> Chunk:
        if self.segment.source.compression:
            return Chunk(self._path, num_bytes=len(data), data=data, lengths=lengths)
        return Chunk(self._path, self._first_byte + position, len(data), lengths=lengths)

    def _chunks(self, stream: Stream, position: int) -> Iterator[tuple[Chunk, int]]:
        raise NotImplementedError


class _LineReader(_StreamReader):
    def _chunks(self, stream: Stream, position: int) -> Iterator[tuple[Chunk, int]]:
        for data, end in read_lines(stream, position, limit=self._limit):
            if data is None:
                yield Chunk(self._path, data=b"", fault=Fault(too_large(self._limit))), end
            else:
                # At its very start, a file may say that it is UTF-8.
                if self._first_byte + end == len(data) and data.startswith(BOM_UTF8):
                    del data[: len(BOM_UTF8)]
                chunk = self._chunk(data, end - len(data))
                del data
                yield chunk, end


class _TextReader(_StreamReader):
    """A file that is one document."""

    def _chunks(self, stream: Stream, position: int) -> Iterator[tuple[Chunk, int]]:
        data = bytearray()
        while len(data) <= self._limit and (block := stream.read(CHUNK_BYTES)):
            data += block
        if len(data) > self._limit:
            yield Chunk(self._path, data=b"", fault=Fault(too_large(self._limit))), -1
            return
        start = len(BOM_UTF8) if data.startswith(BOM_UTF8) else 0
        del data[:start]
        chunk = self._chunk(data, start, (len(data),))
        del data
        yield chunk, -1


class _ParquetReader(_Reader):
    """A position is the number of a row, counted from the first of the segment."""

    def read(self, position: int) -> Iterator[tuple[Chunk, int]]:
        from data_indexing.parquet import row_groups

        segment = self.segment
        self._sha256 = file_sha256(self._path)
        first = 0
        for group in row_groups(self._path)[segment.begin : segment.end]:
            if position < first + group.num_rows:
                for chunk, end in self._read_group(group, max(0, position - first)):
                    yield chunk, first + end
            first += group.num_rows
        self.num_file_bytes = segment.source.num_bytes

    def _read_group(self, group: "RowGroup", position: int) -> Iterator[tuple[Chunk, int]]:
        from data_indexing.parquet import ParquetDamageError, read_rows

        row = 0
        reason = "holds fewer rows than its footer says"
        try:
            for data, lengths in read_rows(self._path, self._field, group.number):
                row += len(lengths)
                if row > position:
                    skipped = max(0, len(lengths) - (row - position))
                    rest = data[sum(length for length in lengths[:skipped] if length > 0) :]
                    yield Chunk(self._path, num_bytes=len(rest), data=rest, lengths=lengths[skipped:]), row
        except ParquetDamageError as error:
            reason = str(error)
        if row < group.num_rows:
            fault = Fault(
                f"row group {group.number} of Parquet damaged ({reason})", num_damaged=group.num_rows - max(row, position)
            )
            yield Chunk(self._path, data=b"", fault=fault), group.num_rows


_READERS = {"lines": _LineReader, "text": _TextReader, "parquet": _ParquetReader}
