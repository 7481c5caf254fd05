"""Is the index of a pair whole: every sequence in its place, every document a run of sequences."""

import numpy as np

from data_indexing.errors import DataError
from data_indexing.format import idx_path
from data_indexing.reader import IndexedReader

BATCH_SEQUENCES = 1 << 20


def check_structure(reader: IndexedReader) -> None:
    """DataError where the index is damaged."""
    fault = pointer_fault(reader) or document_fault(reader)
    if fault:
        raise DataError(f"{idx_path(reader.prefix)}: {fault}; the index is damaged, write or copy the pair again")


def pointer_fault(reader: IndexedReader) -> str | None:
    """What is wrong with the sequences: each must begin where the one before it ends."""
    expected = 0
    for start in range(0, reader.num_sequences, BATCH_SEQUENCES):
        lengths = reader.sequence_lengths[start : start + BATCH_SEQUENCES].astype(np.int64)
        pointers = reader.sequence_pointers[start : start + BATCH_SEQUENCES]
        ends = expected + np.cumsum(lengths) * reader.dtype.itemsize
        wrong = np.flatnonzero((pointers != ends - lengths * reader.dtype.itemsize) | (lengths < 0))
        if wrong.size:
            first = int(wrong[0])
            where = f"sequence {start + first} begins at byte {pointers[first]} with {lengths[first]} tokens"
            return f"{where}, expected byte {ends[first] - lengths[first] * reader.dtype.itemsize}"
        expected = int(ends[-1])
    return None


def document_fault(reader: IndexedReader) -> str | None:
    """What is wrong with the document indices: they must rise from 0 to the number of sequences."""
    indices = reader.document_indices
    if indices[0] != 0 or indices[-1] != reader.num_sequences:
        return f"document indices cover {indices[0]} .. {indices[-1]}, expected 0 .. {reader.num_sequences}"
    for start in range(0, reader.num_documents, BATCH_SEQUENCES):
        falls = np.flatnonzero(np.diff(indices[start : start + BATCH_SEQUENCES + 1]) < 0)
        if falls.size:
            return f"document {start + int(falls[0])} ends before it begins"
    return None
