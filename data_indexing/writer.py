"""Write a Megatron .bin/.idx pair, and the manifest beside it, that appear whole or not at all."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_indexing.errors import DataError
from data_indexing.format import HEADER_BYTES, Header, Prefix, bin_path, idx_path, manifest_path, pack_header
from data_indexing.manifest import Manifest, file_sha256, manifest_text
from data_indexing.streams import Buffer, HashedOutput, full_disk_named, open_partial, partial_path, sync, write_all

_MAX_SEQUENCE_TOKENS = 2**31 - 1
_BATCH_SEQUENCES = 1 << 20


def check_output(prefix: Prefix, *, overwrite: bool) -> None:
    """Refuse a prefix that holds files already, unless they may be overwritten; create its directory."""
    existing = [path.name for path in (bin_path(prefix), idx_path(prefix), manifest_path(prefix)) if path.exists()]
    if existing and not overwrite:
        raise DataError(f"{prefix}: {', '.join(existing)} exists; choose another output or overwrite it (--overwrite)")
    try:
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{prefix}: {error}; choose another output") from None


class IndexedWriter:
    """Context manager that publishes the pair when its block succeeds, replacing an older one and its manifest.

    Everything goes to PATH.partial beside the target and is renamed, .idx last, so that an .idx always has its .bin; an
    exception removes it, and what a killed run left is overwritten by the next. `bin_sha256`, `bin_crc32` and
    `idx_sha256` are known from `seal` on. Memory: constant.
    """

    def __init__(self, prefix: Prefix, dtype: npt.DTypeLike) -> None:
        """Touch nothing yet; `dtype` as of `dtype_for_vocab`."""
        self.prefix = Path(prefix)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.num_documents = 0
        self.num_sequences = 0
        self.bin_sha256 = ""
        self.bin_crc32 = 0
        self.idx_sha256 = ""
        self._num_indexed_tokens = 0
        self._targets = [bin_path(prefix), manifest_path(prefix), idx_path(prefix)]
        self._tokens: HashedOutput
        self._index: FileIO
        self._document_ends: FileIO
        self._open = ExitStack()

    @property
    def num_tokens(self) -> int:
        """Tokens added so far."""
        return self._tokens.num_bytes // self.dtype.itemsize

    def add_document(self, tokens: npt.ArrayLike, sequence_lengths: Sequence[int] | None = None) -> None:
        """Append one document, of one sequence unless lengths are given."""
        flat = np.asarray(tokens)
        lengths = [flat.size] if sequence_lengths is None else list(sequence_lengths)
        self.add_documents(flat, lengths, sequences_per_document=[len(lengths)])

    def add_documents(
        self, tokens: npt.ArrayLike, lengths: npt.ArrayLike, *, sequences_per_document: npt.ArrayLike | None = None
    ) -> None:
        """Append documents: their tokens in one flat array, and the length of each sequence.

        Without `sequences_per_document` each sequence is a document. A wrong sum or an id the dtype cannot hold is a
        ValueError.
        """
        flat = self._to_dtype(np.asarray(tokens))
        sizes = np.asarray(lengths, np.int64)
        counts = np.ones(sizes.size, np.int64) if sequences_per_document is None else np.asarray(sequences_per_document)
        if sizes.sum() != flat.size:
            raise ValueError(f"{flat.size} tokens in {sizes.size} sequences of {sizes.sum()}")
        self.add_lengths(sizes, counts)
        self.add_bytes(flat.tobytes())

    def add_bytes(self, data: Buffer) -> None:
        """Append tokens as they lie in a .bin; `add_lengths` must tell of them too.

        The bytes must stay as they are until `streams.HASHES_BEHIND` further calls have returned.
        """
        with full_disk_named(self.prefix):
            self._tokens.write(data)

    def add_lengths(self, lengths: npt.NDArray[Any], sequences_per_document: npt.NDArray[Any]) -> None:
        """Append documents to the index alone: the tokens of each sequence, the sequences of each document."""
        if sequences_per_document.sum() != lengths.size or lengths.max(initial=0) > _MAX_SEQUENCE_TOKENS:
            raise ValueError(f"{lengths.size} sequences, in all documents {sequences_per_document.sum()}")
        ends = self.num_sequences + np.cumsum(sequences_per_document, dtype=np.int64)
        with full_disk_named(self.prefix):
            write_all(self._index, lengths.astype(np.int32).tobytes())
            write_all(self._document_ends, ends.tobytes())
        self.num_sequences += lengths.size
        self.num_documents += ends.size
        self._num_indexed_tokens += int(lengths.sum(dtype=np.int64))

    def seal(self) -> None:
        """Complete both files and bring them to the disk, still unpublished: nothing can be added any more."""
        if self._num_indexed_tokens * self.dtype.itemsize != self._tokens.num_bytes:
            raise ValueError(f"{self.prefix}: index of {self._num_indexed_tokens} tokens, written {self.num_tokens}")
        with full_disk_named(self.prefix):
            self._complete_index()
            self.bin_sha256, self.bin_crc32 = self._tokens.seal()
        self.idx_sha256 = file_sha256(partial_path(idx_path(self.prefix)))

    def add_manifest(self, manifest: Manifest) -> None:
        """Publish a manifest together with the pair, which must be sealed."""
        if not self.bin_sha256:
            raise ValueError(f"{self.prefix}: not sealed yet")
        with full_disk_named(self.prefix), FileIO(partial_path(manifest_path(self.prefix)), "w") as stream:
            write_all(stream, manifest_text(manifest).encode())
            sync(stream)

    def __enter__(self) -> Self:
        """Open the partial files."""
        # Whoever holds the .bin holds the prefix. The lengths come first in the index, so they go there at once.
        stream = self._open.enter_context(open_partial(bin_path(self.prefix)))
        self._tokens = HashedOutput(stream)
        self._open.callback(self._tokens.close)
        partial_path(manifest_path(self.prefix)).unlink(missing_ok=True)
        self._index = self._open.enter_context(FileIO(partial_path(idx_path(self.prefix)), "w+"))
        self._index.seek(HEADER_BYTES)
        self._document_ends = self._open.enter_context(TemporaryFile(buffering=0, dir=self.prefix.parent))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Publish, or remove what was written."""
        with self._open:
            try:
                if kind is None:
                    self._publish()
            finally:
                for path in self._targets:
                    partial_path(path).unlink(missing_ok=True)

    def _to_dtype(self, tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if tokens.dtype == self.dtype or tokens.size == 0:
            return tokens.astype(self.dtype, copy=False)
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            if tokens.min() < limits.min or tokens.max() > limits.max:
                raise ValueError(f"token ids {tokens.min()} .. {tokens.max()} do not fit {self.dtype}")
        return tokens.astype(self.dtype)

    def _complete_index(self) -> None:
        """Append pointers and document indices to the lengths, then fill in the header."""
        pointer = 0
        for start in range(0, self.num_sequences, _BATCH_SEQUENCES):
            count = min(_BATCH_SEQUENCES, self.num_sequences - start)
            lengths = np.frombuffer(os.pread(self._index.fileno(), 4 * count, HEADER_BYTES + 4 * start), np.int32)
            # One sum: a loop over the lengths takes ten times as long.
            ends = pointer + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            write_all(self._index, (ends - lengths.astype(np.int64) * self.dtype.itemsize).tobytes())
            pointer = int(ends[-1])
        write_all(self._index, bytes(8))
        self._document_ends.seek(0)
        while data := self._document_ends.read(8 * _BATCH_SEQUENCES):
            write_all(self._index, data)
        self._index.seek(0)
        write_all(self._index, pack_header(Header(self.dtype, self.num_sequences, self.num_documents + 1)))
        sync(self._index)

    def _publish(self) -> None:
        if not self.bin_sha256:
            self.seal()
        # An older index or manifest must never stand beside the new tokens.
        idx_path(self.prefix).unlink(missing_ok=True)
        manifest_path(self.prefix).unlink(missing_ok=True)
        for path in self._targets:
            if partial_path(path).exists():
                partial_path(path).rename(path)
        _sync_directory(self.prefix.parent)


def _sync_directory(path: Path) -> None:
    """Make renames outlast a crash of the machine."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
