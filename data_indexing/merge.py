"""Put several pairs into one, in order or with all their documents shuffled, in constant memory for tokens."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from data_indexing.errors import DataError
from data_indexing.format import Prefix, bin_path, manifest_path
from data_indexing.manifest import Counts, Manifest, Part, load_manifest, save_manifest
from data_indexing.progress import progress
from data_indexing.reader import IndexedReader
from data_indexing.writer import IndexedWriter, check_output

Value = TypeVar("Value")

_BATCH_TOKENS = 8 << 20
_SHUFFLE_BATCH_DOCUMENTS = 1024
# Reads in flight: scattered reads of a parallel file system are slow one by one.
_SHUFFLE_READERS = 16


def merge(prefixes: Sequence[Prefix], output: Prefix, *, shuffle_seed: int | None = None, overwrite: bool = False) -> Counts:
    """Concatenate pairs; with a seed, in one random order of all documents that is the same on every machine.

    Pairs of another dtype, tokenizer or BOS/EOD policy are refused. Where a pair has no manifest, the merged one names
    no tokenizer and no policy. Memory: one batch of tokens, and 16 bytes a document when shuffling.
    """
    _check_paths(prefixes, output)
    check_output(output, overwrite=overwrite)
    with ExitStack() as stack:
        readers = [stack.enter_context(IndexedReader(prefix)) for prefix in prefixes]
        manifests = [_matching_manifest(reader) for reader in readers]
        _check_alike(readers, manifests)
        writer = stack.enter_context(IndexedWriter(output, readers[0].dtype))
        total_bytes = sum(reader.num_tokens * reader.dtype.itemsize for reader in readers)
        with progress("merge", total_bytes, "B") as advance:
            batches = _in_order(readers) if shuffle_seed is None else _shuffled(readers, shuffle_seed)
            for tokens, lengths, sequences in batches:
                writer.add_documents(tokens, lengths, sequences_per_document=sequences)
                advance(tokens.nbytes)
    manifest = _merged_manifest(readers, manifests, writer, shuffle_seed=shuffle_seed)
    save_manifest(output, manifest)
    return manifest.counts


_Batch = tuple[npt.NDArray[Any], npt.NDArray[np.int32], npt.NDArray[np.int64]]


def _in_order(readers: Sequence[IndexedReader]) -> Iterator[_Batch]:
    for reader in readers:
        for first, end in reader.document_batches(_BATCH_TOKENS):
            yield _documents(reader, first, end)


def _documents(reader: IndexedReader, first: int, end: int) -> _Batch:
    """Tokens, sequence lengths and sequences per document of the documents first .. end - 1."""
    indices = reader.document_indices[first : end + 1]
    return reader.documents(first, end), reader.sequence_lengths[indices[0] : indices[-1]], np.diff(indices)


def _shuffled(readers: Sequence[IndexedReader], seed: int) -> Iterator[_Batch]:
    ends = list(accumulate(reader.num_documents for reader in readers))
    order = _random_order(ends[-1], seed)

    def read(document: int) -> _Batch:
        part = bisect_right(ends, document)
        local = document - ends[part] + readers[part].num_documents
        return _documents(readers[part], local, local + 1)

    def read_all(documents: npt.NDArray[np.int64]) -> list[_Batch]:
        return [read(document) for document in documents.tolist()]

    with ThreadPoolExecutor(_SHUFFLE_READERS) as pool:
        for start in range(0, order.size, _SHUFFLE_BATCH_DOCUMENTS):
            shares = np.array_split(order[start : start + _SHUFFLE_BATCH_DOCUMENTS], _SHUFFLE_READERS)
            documents = chain.from_iterable(pool.map(read_all, shares))
            tokens, lengths, sequences = (np.concatenate(arrays) for arrays in zip(*documents, strict=True))
            yield tokens, lengths, sequences


def _random_order(count: int, seed: int) -> npt.NDArray[np.int64]:
    # numpy keeps the raw stream of a bit generator for ever, but not what permutation() makes of it.
    keys = np.random.PCG64(seed).random_raw(count)
    return np.argsort(keys, kind="stable")


def _check_paths(prefixes: Sequence[Prefix], output: Prefix) -> None:
    paths = [os.path.realpath(bin_path(prefix)) for prefix in prefixes]
    if os.path.realpath(bin_path(output)) in paths:
        raise DataError(f"{output}: is both an input and the output of the merge; choose another output")
    for prefix, path in zip(prefixes, paths, strict=True):
        if paths.count(path) > 1:
            raise DataError(f"{prefix}: given {paths.count(path)} times; give each pair once")


def _matching_manifest(reader: IndexedReader) -> Manifest | None:
    manifest = load_manifest(reader.prefix)
    if manifest and (manifest.counts.num_documents, manifest.counts.num_tokens) != _size(reader):
        counts = f"{manifest.counts.num_documents} documents and {manifest.counts.num_tokens} tokens"
        found = "{} and {}".format(*_size(reader))
        path = manifest_path(reader.prefix)
        raise DataError(f"{path}: says {counts}, the pair holds {found}; tokenize again or remove the manifest")
    return manifest


def _size(reader: IndexedReader) -> tuple[int, int]:
    return reader.num_documents, reader.num_tokens


def _check_alike(readers: Sequence[IndexedReader], manifests: Sequence[Manifest | None]) -> None:
    _refuse_difference("dtype", [(reader.prefix, reader.dtype.name) for reader in readers])
    known = [(reader.prefix, manifest) for reader, manifest in zip(readers, manifests, strict=True) if manifest]
    tokenizers = [(prefix, manifest.tokenizer) for prefix, manifest in known]
    named = [(prefix, f"{record.name} {record.sha256[:16]}") for prefix, record in tokenizers if record]
    _refuse_difference("tokenizer", named)
    policies = [(prefix, manifest.policy) for prefix, manifest in known]
    stated = [(prefix, f"bos {policy.bos}, eod {policy.eod}") for prefix, policy in policies if policy]
    _refuse_difference("policy", stated)


def _refuse_difference(what: str, values: Sequence[tuple[Path, str]]) -> None:
    for prefix, value in values:
        first, expected = values[0]
        if value != expected:
            raise DataError(f"{prefix}: {what} is {value}, that of {first} is {expected}; tokenize both alike or merge apart")


def _merged_manifest(
    readers: Sequence[IndexedReader],
    manifests: Sequence[Manifest | None],
    writer: IndexedWriter,
    *,
    shuffle_seed: int | None,
) -> Manifest:
    known = [manifest for manifest in manifests if manifest]
    complete = len(known) == len(manifests)
    parts = (_part(reader, manifest) for reader, manifest in zip(readers, manifests, strict=True))
    return Manifest(
        tokenizer=_common([manifest.tokenizer for manifest in known]) if complete else None,
        policy=_common([manifest.policy for manifest in known]) if complete else None,
        dtype=writer.dtype.name,
        counts=Counts(
            writer.num_documents,
            writer.num_tokens,
            _total([manifest.counts.num_empty_documents for manifest in known]) if complete else None,
            _total([manifest.counts.num_text_bytes for manifest in known]) if complete else None,
        ),
        inputs=tuple(chain.from_iterable(manifest.inputs for manifest in known)),
        bin_sha256=writer.bin_sha256,
        idx_sha256=writer.idx_sha256,
        parts=tuple(parts),
        shuffle_seed=shuffle_seed,
    )


def _part(reader: IndexedReader, manifest: Manifest | None) -> Part:
    hashes = (manifest.bin_sha256, manifest.idx_sha256) if manifest else (None, None)
    return Part(reader.prefix.name, *_size(reader), *hashes)


def _common(values: Sequence[Value | None]) -> Value | None:
    """The value that all share, None where one of them is not known."""
    return values[0] if None not in values else None


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
