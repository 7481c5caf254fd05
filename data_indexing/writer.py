"""Write a Megatron .bin/.idx pair that appears whole or not at all."""

import array
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from data_indexing.errors import DataError
from data_indexing.format import Header, Prefix, bin_path, idx_path, manifest_path, pack_header

_MAX_SEQUENCE_TOKENS = 2**31 - 1


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

    Tokens go to temporary names beside the target and are renamed, .bin first, so that an .idx always has its .bin;
    an exception removes them. Afterwards `bin_sha256` and `idx_sha256` are known. Memory: 12 bytes a document, four
    times that while the index is written.
    """

    def __init__(self, prefix: Prefix, dtype: npt.DTypeLike) -> None:
        """Touch nothing yet; `dtype` as of `dtype_for_vocab`."""
        self.prefix = Path(prefix)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.num_tokens = 0
        self.bin_sha256 = ""
        self.idx_sha256 = ""
        self._lengths = array.array("i")
        self._documents = array.array("q", [0])
        self._digest = hashlib.sha256()
        self._temporaries = {
            path: path.with_name(f"{path.name}.tmp-{os.getpid()}") for path in (bin_path(prefix), idx_path(prefix))
        }
        self._stream: BinaryIO

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._documents) - 1

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
        if sizes.sum() != flat.size or counts.sum() != sizes.size or sizes.max(initial=0) > _MAX_SEQUENCE_TOKENS:
            raise ValueError(f"{flat.size} tokens, {sizes.size} sequences of {sizes.sum()}, in all {counts.sum()}")
        raw = flat.tobytes()
        self._stream.write(raw)
        self._digest.update(raw)
        self._documents.frombytes((len(self._lengths) + np.cumsum(counts, dtype=np.int64)).tobytes())
        self._lengths.frombytes(sizes.astype(np.int32).tobytes())
        self.num_tokens += flat.size

    def __enter__(self) -> Self:
        """Open the temporary .bin."""
        path = self._temporaries[bin_path(self.prefix)]
        try:
            self._stream = path.open("wb")
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; choose another output") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Publish, or remove what was written."""
        try:
            if kind is None:
                self._publish()
        finally:
            self._stream.close()
            for temporary in self._temporaries.values():
                temporary.unlink(missing_ok=True)

    def _to_dtype(self, tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if tokens.dtype == self.dtype or tokens.size == 0:
            return tokens.astype(self.dtype, copy=False)
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            if tokens.min() < limits.min or tokens.max() > limits.max:
                raise ValueError(f"token ids {tokens.min()} .. {tokens.max()} do not fit {self.dtype}")
        return tokens.astype(self.dtype)

    def _publish(self) -> None:
        _sync(self._stream)
        index = self._index()
        with self._temporaries[idx_path(self.prefix)].open("wb") as stream:
            stream.write(index)
            _sync(stream)
        self.bin_sha256 = self._digest.hexdigest()
        self.idx_sha256 = hashlib.sha256(index).hexdigest()
        # An older index or manifest must never stand beside the new tokens.
        manifest_path(self.prefix).unlink(missing_ok=True)
        idx_path(self.prefix).unlink(missing_ok=True)
        for path, temporary in self._temporaries.items():
            temporary.rename(path)

    def _index(self) -> bytes:
        lengths = np.frombuffer(self._lengths, np.int32)
        # One exclusive sum: a loop over the lengths takes ten times as long.
        pointers = (np.cumsum(lengths, dtype=np.int64) - lengths) * self.dtype.itemsize
        documents = np.frombuffer(self._documents, np.int64)
        header = pack_header(Header(self.dtype, lengths.size, documents.size))
        return b"".join((header, lengths.tobytes(), pointers.tobytes(), documents.tobytes()))


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
