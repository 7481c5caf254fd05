"""Read a Megatron .bin/.idx pair: any run of tokens in one system call, or a document.

Opening costs a few system calls whatever the size: the index is mapped, its last entries are checked against the sizes
of both files, and everything else is checked when it is used (verify.py checks it all).
"""

import os
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_indexing.errors import DataError
from data_indexing.format import HEADER_BYTES, Header, Prefix, bin_path, idx_path, unpack_header
from data_indexing.streams import read_exactly

_OFFSETS_AT_ONCE = 1 << 18
_FILE_OF = attrgetter("_file")


class IndexedReader:
    """An open pair; raises DataError where the files are missing, truncated or contradict each other.

    `sequence_lengths`, `sequence_pointers` and `document_indices` are views of the mapped index.
    """

    def __init__(self, prefix: Prefix) -> None:
        """Open PREFIX.idx and PREFIX.bin."""
        self.prefix = Path(prefix)
        header = _read_header(idx_path(prefix))
        self.dtype: np.dtype[Any] = header.dtype
        self.num_sequences = header.num_sequences
        self.num_documents = header.num_document_indices - 1
        index = np.memmap(idx_path(prefix), mode="r")
        pointers_start = HEADER_BYTES + 4 * self.num_sequences
        documents_start = pointers_start + 8 * self.num_sequences
        self.sequence_lengths = np.frombuffer(index, np.int32, self.num_sequences, HEADER_BYTES)
        self.sequence_pointers = np.frombuffer(index, np.int64, self.num_sequences, pointers_start)
        self.document_indices = np.frombuffer(index, np.int64, header.num_document_indices, documents_start)
        self.num_tokens = self._expected_bytes() // self.dtype.itemsize
        self._file = _open_bin(bin_path(prefix), self._expected_bytes())

    def read(self, start_token: int, num_tokens: int) -> npt.NDArray[Any]:
        """`num_tokens` tokens from `start_token`, counted over the whole .bin; one pread, read-only."""
        if start_token < 0 or num_tokens < 0 or start_token + num_tokens > self.num_tokens:
            raise ValueError(f"{self.prefix}: no tokens {start_token} + {num_tokens} in a file of {self.num_tokens}")
        num_bytes = num_tokens * self.dtype.itemsize
        raw = os.pread(self._file, num_bytes, start_token * self.dtype.itemsize)
        if len(raw) != num_bytes:
            # One call reads 2 GB at most.
            tokens = np.empty(num_tokens, self.dtype)
            self.read_bytes(start_token * self.dtype.itemsize, tokens.view(np.uint8).data)
            return tokens
        return np.frombuffer(raw, self.dtype)  # [num_tokens]

    def read_bytes(self, start_byte: int, buffer: memoryview) -> None:
        """Fill the buffer from the .bin; the file being shorter is a DataError."""
        found = read_exactly(self._file, buffer, start_byte)
        if found != buffer.nbytes:
            raise self._short_read(found, buffer.nbytes)

    def document(self, index: int) -> npt.NDArray[Any]:
        """All tokens of document `index`."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"{self.prefix}: no document {index} in a file of {self.num_documents}")
        return self.documents(index, index + 1)

    def documents(self, first: int, end: int) -> npt.NDArray[Any]:
        """All tokens of documents first .. end - 1, which lie one after the other."""
        offsets = self.document_offsets(first, end)
        return self.read(int(offsets[0]), int(offsets[-1] - offsets[0]))

    def document_offsets(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Token offsets at which documents first .. last begin; the entry of document `num_documents` is the end."""
        sequences = self.document_indices[first : last + 1]
        if not 0 <= sequences.min() <= sequences.max() <= self.num_sequences:
            raise self._out_of_range(first, last, f"sequences outside 0 .. {self.num_sequences}")
        offsets = np.full(sequences.size, self.num_tokens, np.int64)
        inside = sequences < self.num_sequences
        offsets[inside] = self.sequence_pointers[sequences[inside]] // self.dtype.itemsize
        if offsets[0] < 0 or offsets[-1] > self.num_tokens or np.any(np.diff(offsets) < 0):
            raise self._out_of_range(first, last, f"bytes backwards or outside the {self._expected_bytes()} of the .bin")
        return offsets

    def document_batches(self, max_tokens: int) -> Iterator[tuple[int, int]]:
        """Ranges (first, end) over all documents in order, each of at most `max_tokens` tokens or of one document."""
        first = 0
        while first < self.num_documents:
            offsets = self.document_offsets(first, min(first + _OFFSETS_AT_ONCE, self.num_documents))
            fitting = int(np.searchsorted(offsets, offsets[0] + max_tokens, side="right")) - 1
            yield first, first + max(1, fitting)
            first += max(1, fitting)

    def close(self) -> None:
        """Close the .bin; the index stays mapped as long as its views are used."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        """Open for the length of a block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close, whatever happened."""
        self.close()

    def _expected_bytes(self) -> int:
        if self.num_sequences == 0:
            return 0
        return int(self.sequence_pointers[-1]) + int(self.sequence_lengths[-1]) * self.dtype.itemsize

    def _short_read(self, found: int, expected: int) -> DataError:
        path = bin_path(self.prefix)
        return DataError(f"{path}: read {found} bytes, expected {expected}; the file changed, copy it again")

    def _out_of_range(self, first: int, last: int, what: str) -> DataError:
        where = f"{idx_path(self.prefix)}: documents {first} .. {last} point to {what}"
        return DataError(f"{where}; the index is damaged, write or copy the pair again")


class RowPlaces:
    """Where rows of tokens begin, in one file or several; reading one costs a system call and little more."""

    def __init__(self, readers: Sequence[IndexedReader], start_tokens: npt.NDArray[np.int64], dtype: np.dtype[Any]) -> None:
        """Row n lies in readers[n] from token start_tokens[n] on; `dtype` is what the rows are read as."""
        self._readers = readers
        self._start_tokens = start_tokens
        self._start_bytes = (start_tokens * dtype.itemsize).tolist()
        self._dtype = dtype
        self._are_alike = all(reader.dtype == dtype for reader in set(readers))

    def read(self, first: int, rows: npt.NDArray[Any]) -> None:
        """Fill `rows` [rows, tokens] from row `first` on: one system call each, in place where the file's type is that of the rows.

        Raises DataError when a file is gone or cut.
        """
        end = first + len(rows)
        if not (self._are_alike and self._read_in_place(rows, self._readers[first:end], self._start_bytes[first:end])):
            # Or the files are other than expected, and this finds out which.
            for row, reader, start in zip(rows, self._readers[first:end], self._start_tokens[first:end].tolist(), strict=True):
                self._read_row(row, reader, start)

    def _read_in_place(self, rows: npt.NDArray[Any], readers: Sequence[IndexedReader], start_bytes: Sequence[int]) -> bool:
        """False where a row could not be read whole. No loop: its steps would take a tenth of the time of the reading."""
        try:
            counts = list(map(os.preadv, map(_FILE_OF, readers), zip(rows), start_bytes))
        except OSError:
            return False
        return counts == [rows.shape[1] * rows.itemsize] * len(rows)

    def _read_row(self, row: npt.NDArray[Any], reader: IndexedReader, start: int) -> None:
        try:
            if reader.dtype == self._dtype:
                reader.read_bytes(start * self._dtype.itemsize, row.view(np.uint8).data)
            else:
                row[:] = reader.read(start, row.size)
        except OSError as error:
            problem = f"{error.strerror} while reading token {start}"
            raise DataError(f"{bin_path(reader.prefix)}: {problem}; restore the file and start again") from error


def _read_header(path: Path) -> Header:
    found = _size(path)
    with path.open("rb") as stream:
        header = unpack_header(stream.read(HEADER_BYTES), path)
    if found == header.index_bytes + header.num_sequences and header.num_sequences:
        raise DataError(f"{path}: holds multimodal sequence modes, which are not supported; use a text-only pair")
    if found != header.index_bytes:
        counts = f"{header.num_sequences} sequences and {header.num_document_indices} document indices"
        raise DataError(f"{path}: {counts} need {header.index_bytes} bytes, found {found}; write or copy the file again")
    if header.num_document_indices == 0:
        raise DataError(f"{path}: holds no document indices, expected at least 1; write the pair again")
    return header


def _open_bin(path: Path, expected: int) -> int:
    found = _size(path)
    if found != expected:
        raise DataError(f"{path}: the .idx describes {expected} bytes, found {found}; write or copy the pair again")
    return os.open(path, os.O_RDONLY)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        way = "give the prefix of a pair, without .bin or .idx" if path.suffix == ".idx" else "it belongs to the .idx beside it"
        raise DataError(f"{path}: {error.strerror}; {way}") from None
