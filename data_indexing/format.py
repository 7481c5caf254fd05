"""Layout of Megatron's indexed dataset: a pair of files that share a prefix.

    PREFIX.bin  the tokens of all documents, one after the other, without separators
    PREFIX.idx  header, then sequence lengths int32[], byte pointers int64[], document indices int64[]

A document is a run of sequences: document i holds the sequences document_indices[i] .. document_indices[i + 1] - 1.
All numbers are little-endian. Beside the pair we write PREFIX.json, the manifest (manifest.py).
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_indexing.errors import DataError

Prefix = str | Path

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("uint8"),
    2: np.dtype("int8"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}
_HEADER = struct.Struct("<9sQBQQ")
HEADER_BYTES = _HEADER.size
# Megatron keeps ids up to 65,499 in uint16, although the type would hold 36 more.
_UINT16_VOCAB_LIMIT = 65_500


@dataclass(frozen=True)
class Header:
    """The first 34 bytes of an .idx file."""

    dtype: np.dtype[Any]
    num_sequences: int
    num_document_indices: int

    @property
    def index_bytes(self) -> int:
        """Size of the whole .idx file."""
        return HEADER_BYTES + 12 * self.num_sequences + 8 * self.num_document_indices


def bin_path(prefix: Prefix) -> Path:
    """Name of the token file."""
    return _beside(prefix, ".bin")


def idx_path(prefix: Prefix) -> Path:
    """Name of the index file."""
    return _beside(prefix, ".idx")


def manifest_path(prefix: Prefix) -> Path:
    """Name of the manifest."""
    return _beside(prefix, ".json")


def unpublished_path(prefix: Prefix) -> Path:
    """Folder of an output that is not complete."""
    return _beside(prefix, ".unpublished")


def rejected_path(prefix: Prefix) -> Path:
    """List of the documents that were rejected."""
    return _beside(prefix, ".rejected.jsonl")


def dtype_for_vocab(vocab_size: int) -> np.dtype[Any]:
    """Token dtype that Megatron chooses for a vocabulary of this size."""
    return DTYPES[8] if vocab_size < _UINT16_VOCAB_LIMIT else DTYPES[4]


def pack_header(header: Header) -> bytes:
    """Bytes of a header."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    return _HEADER.pack(MAGIC, VERSION, codes[header.dtype], header.num_sequences, header.num_document_indices)


def unpack_header(raw: bytes, path: Path) -> Header:
    """Header from the first bytes of the .idx file `path`, or a DataError that says what is wrong with them."""
    if len(raw) < HEADER_BYTES:
        raise DataError(f"{path}: header needs {HEADER_BYTES} bytes, found {len(raw)}; write or copy the file again")
    magic, version, code, num_sequences, num_document_indices = _HEADER.unpack(raw[:HEADER_BYTES])
    if magic != MAGIC:
        raise DataError(f"{path}: starts with {magic!r}, not {MAGIC!r}; give the prefix of a Megatron .bin/.idx pair")
    if version != VERSION:
        raise DataError(f"{path}: format version {version}, expected {VERSION}; write the file again")
    if code not in DTYPES:
        raise DataError(f"{path}: dtype code {code}, expected one of {sorted(DTYPES)}; write or copy the file again")
    return Header(DTYPES[code], num_sequences, num_document_indices)


def _beside(prefix: Prefix, ending: str) -> Path:
    # A Path first: it drops the slash at the end of a name.
    return Path(f"{Path(prefix)}{ending}")
