"""Write the documents of many pairs in one random order, in bounded memory, with long reads and writes.

The order is a formula. Document n, counted from 0 over all inputs in their order, has the key
mix(mix(seed) + (n + 1) * 0x9E3779B97F4A7C15) modulo 2^64, and documents stand in ascending order of their keys. `mix` is
the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014); it maps
64-bit numbers one to one, so no two keys are equal. Nothing else enters: no buffer size, library version or machine.

It is reached in two passes. The inputs are read from end to end, and each document goes to the bucket of the leading
bits of its key, in files without names that vanish with the process; then bucket after bucket is read back, sorted and
written.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from data_indexing.errors import DataError
from data_indexing.pairs import Pair, check_index, checked_bin
from data_indexing.reader import IndexedReader
from data_indexing.streams import BackgroundHash, full_disk_named, read_exactly, write_all
from data_indexing.writer import IndexedWriter

DEFAULT_MEMORY_BYTES = 500_000_000
# What a document costs in memory beside its tokens: a row, a slice, its place in the order.
_DOCUMENT_BYTES = 128
_WRITE_BYTES = 4 << 20
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Integers = npt.NDArray[np.int64]


def shuffle_keys(seed: int, documents: Integers) -> npt.NDArray[np.uint64]:
    """Sort key of each document number."""
    start = _mix(np.array([seed], np.uint64))
    return _mix((documents.astype(np.uint64) + np.uint64(1)) * _GOLDEN + start)


def check_seed(seed: int) -> None:
    """Refuse a seed that is not a 64-bit number."""
    if not 0 <= seed < 2**64:
        raise DataError(f"shuffle seed ({seed}) must be within 0 .. 2^64 - 1; choose another seed")


def write_shuffled(
    pairs: Sequence[Pair], writer: IndexedWriter, *, seed: int, memory_bytes: int, advance: Callable[[int], None]
) -> None:
    """Append all documents of the pairs in the order of the seed; `advance` hears of every byte twice.

    Memory: about `memory_bytes`, or three times the largest document. Disk: as much again as the pairs, beside the output.
    """
    weight = sum(pair.num_bytes + pair.num_documents * _DOCUMENT_BYTES for pair in pairs)
    if weight == 0:
        return
    buffer_bytes = memory_bytes // 2
    buffer = memoryview(bytearray(min(buffer_bytes, weight)))
    # Buckets differ in size by chance, so they are planned a fifth smaller than the buffer.
    bits = (5 * weight // (4 * buffer_bytes)).bit_length()
    with _Buckets(writer.prefix.parent, seed=seed, bits=bits) as buckets, full_disk_named(writer.prefix):
        for documents in _read_documents(pairs, buffer):
            buckets.add(documents)
            advance(documents.tokens.nbytes)
        for bucket in range(1 << bits):
            documents = buckets.load(bucket, buffer)
            order = np.argsort(shuffle_keys(seed, documents.numbers))
            for data in documents.tokens_in(order):
                writer.add_bytes(data)
                advance(len(data))
            writer.add_lengths(documents.lengths_in(order), documents.num_sequences[order])


@dataclass(frozen=True)
class _Documents:
    """Whole documents in memory; `rows` holds the number, bytes and sequences of each."""

    tokens: memoryview
    rows: Integers  # [documents, 3]
    lengths: npt.NDArray[np.int32]  # [sequences]

    @property
    def numbers(self) -> Integers:
        return self.rows[:, 0]

    @property
    def num_bytes(self) -> Integers:
        return self.rows[:, 1]

    @property
    def num_sequences(self) -> Integers:
        return self.rows[:, 2]

    def tokens_in(self, order: Integers) -> Iterator[bytes]:
        """Tokens of the documents in another order, in pieces that suit a write."""
        ends = np.cumsum(self.num_bytes)
        starts = ends - self.num_bytes
        weights = np.cumsum(self.num_bytes[order] + _DOCUMENT_BYTES)
        cuts = np.searchsorted(weights, np.arange(0, weights[-1:].sum(), _WRITE_BYTES))
        for first, end in pairwise([*cuts.tolist(), order.size]):
            chosen = order[first:end]
            bounds = zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True)
            yield b"".join([self.tokens[start:stop] for start, stop in bounds])

    def lengths_in(self, order: Integers) -> npt.NDArray[np.int32]:
        """Sequence lengths of the documents in another order."""
        counts = self.num_sequences[order]
        starts = (np.cumsum(self.num_sequences) - self.num_sequences)[order]
        # Place i of the result lies at starts[d] + (i - first[d]) of the lengths, d its document.
        offsets = np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return self.lengths[offsets + np.arange(offsets.size)]


def _read_documents(pairs: Sequence[Pair], buffer: memoryview) -> Iterator[_Documents]:
    """All documents in order, in batches that fill the buffer, be the pairs large or small."""
    batch: list[_Documents] = []
    number = filled = weight = 0
    for reader, hashed, first, end in _ranges(pairs, buffer.nbytes):
        offsets = reader.document_offsets(first, end) * reader.dtype.itemsize
        size = int(offsets[-1] - offsets[0])
        weight += size + (end - first) * _DOCUMENT_BYTES
        if batch and weight > buffer.nbytes:
            yield _join(batch, buffer)
            if hashed:
                # The buffer is written over.
                hashed.wait()
            batch, filled, weight = [], 0, size + (end - first) * _DOCUMENT_BYTES
        tokens = _room(buffer[filled:], size)
        reader.read_bytes(int(offsets[0]), tokens)
        if hashed:
            hashed.update(tokens)
        indices = reader.document_indices[first : end + 1]
        rows = np.stack((np.arange(number, number + end - first), np.diff(offsets), np.diff(indices)), axis=1)
        # Copied, as a view would keep the index open.
        batch.append(_Documents(tokens, rows, reader.sequence_lengths[indices[0] : indices[-1]].copy()))
        number, filled = number + end - first, filled + size
    yield _join(batch, buffer)


def _ranges(pairs: Sequence[Pair], max_bytes: int) -> Iterator[tuple[IndexedReader, BackgroundHash | None, int, int]]:
    for pair in pairs:
        with IndexedReader(pair.prefix) as reader, checked_bin(pair) as hashed:
            check_index(pair, reader)
            for first, end in reader.document_batches(max_bytes // reader.dtype.itemsize):
                yield reader, hashed, first, end


def _join(batch: Sequence[_Documents], buffer: memoryview) -> _Documents:
    """One for all documents of a batch, whose tokens lie one after the other in the buffer, or in their own if it was too small."""
    tokens = batch[0].tokens if len(batch) == 1 else buffer[: sum(part.tokens.nbytes for part in batch)]
    return _Documents(tokens, np.concatenate([part.rows for part in batch]), np.concatenate([part.lengths for part in batch]))


class _Buckets:
    """Documents sorted by the leading `bits` of their keys, on disk."""

    def __init__(self, folder: Path, *, seed: int, bits: int) -> None:
        self._seed = seed
        self._bits = bits
        self._spools = [_Spool(folder, 1 << bits) for _ in range(3)]

    def add(self, documents: _Documents) -> None:
        keys = shuffle_keys(self._seed, documents.numbers)
        # In two steps, as a shift by all 64 bits is undefined.
        buckets = ((keys >> np.uint64(1)) >> np.uint64(63 - self._bits)).astype(np.int64)
        order = np.argsort(buckets, kind="stable")
        tokens, rows, lengths = self._spools
        for data in documents.tokens_in(order):
            tokens.write(data)
        rows.write(documents.rows[order].tobytes())
        lengths.write(documents.lengths_in(order).tobytes())
        per_document = (documents.num_bytes, np.full_like(buckets, 8 * 3), documents.num_sequences * 4)
        for spool, sizes in zip(self._spools, per_document, strict=True):
            # Sums of whole numbers below 2^53 are exact in the float64 of bincount.
            spool.end_batch(np.bincount(buckets, sizes, 1 << self._bits).astype(np.int64))

    def load(self, bucket: int, buffer: memoryview) -> _Documents:
        """All documents of a bucket, in the order they were added."""
        if bucket + 1 < 1 << self._bits:
            self._spools[0].announce(bucket + 1)
        tokens, rows, lengths = (spool.read(bucket, room) for spool, room in zip(self._spools, (buffer, None, None), strict=True))
        return _Documents(tokens, np.frombuffer(rows, np.int64).reshape(-1, 3), np.frombuffer(lengths, np.int32))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for spool in self._spools:
            spool.close()


class _Spool:
    """Batches of bytes, each in one piece a bucket, in files without a name; gives back all pieces of a bucket."""

    def __init__(self, folder: Path, num_buckets: int) -> None:
        self._data = _nameless_file(folder)
        # On disk too: it grows with the square of the data.
        self._starts = _nameless_file(folder)
        self._num_buckets = num_buckets
        self._num_bytes = 0

    def write(self, data: bytes) -> None:
        write_all(self._data, data)

    def end_batch(self, sizes: Integers) -> None:
        """Say how many of the bytes since the last batch belong to each bucket."""
        starts = np.concatenate(([0], np.cumsum(sizes))) + self._num_bytes
        write_all(self._starts, starts.tobytes())
        self._num_bytes = int(starts[-1])

    def announce(self, bucket: int) -> None:
        """Let the system read a bucket ahead."""
        for start, end in self._pieces(bucket):
            os.posix_fadvise(self._data.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)

    def read(self, bucket: int, buffer: memoryview | None) -> memoryview:
        """All pieces of a bucket, in the buffer where they fit."""
        pieces = self._pieces(bucket)
        content = _room(buffer, sum(end - start for start, end in pieces))
        position = 0
        for start, end in pieces:
            read_exactly(self._data.fileno(), content[position : position + end - start], start)
            position += end - start
        return content

    def close(self) -> None:
        self._data.close()
        self._starts.close()

    def _pieces(self, bucket: int) -> list[tuple[int, int]]:
        table = np.memmap(self._starts, np.int64, "r").reshape(-1, self._num_buckets + 1)
        return [(start, end) for start, end in table[:, bucket : bucket + 2].tolist() if start < end]


def _nameless_file(folder: Path) -> FileIO:
    return TemporaryFile(buffering=0, dir=folder)


def _room(buffer: memoryview | None, num_bytes: int) -> memoryview:
    """So many bytes of the buffer, or new ones where it is too small."""
    return memoryview(bytearray(num_bytes)) if buffer is None or num_bytes > len(buffer) else buffer[:num_bytes]


def _mix(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
