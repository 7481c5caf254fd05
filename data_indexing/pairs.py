"""The pairs that go into a merge: what each holds, that they are alike, and that each is what its manifest says."""

import os
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_indexing.errors import DataError
from data_indexing.format import Prefix, bin_path, idx_path, manifest_path
from data_indexing.manifest import Manifest, file_sha256, load_manifest
from data_indexing.reader import IndexedReader
from data_indexing.streams import BackgroundHash
from data_indexing.structure import check_structure


@dataclass(frozen=True)
class Pair:
    """One input, looked at and closed again: thousands of them would exceed the limit on open files."""

    prefix: Path
    dtype: np.dtype[Any]
    num_documents: int
    num_sequences: int
    num_tokens: int
    manifest: Manifest | None

    @property
    def num_bytes(self) -> int:
        """Size of the .bin."""
        return self.num_tokens * self.dtype.itemsize


def open_pairs(prefixes: Sequence[Prefix], output: Prefix) -> list[Pair]:
    """Look at every input of a merge into `output`; another dtype, tokenizer or BOS/EOD policy is refused by name."""
    if not prefixes:
        raise DataError(f"{output}: no pairs to merge; give at least one prefix")
    _check_paths(prefixes, output)
    pairs = [_open_pair(prefix) for prefix in prefixes]
    _check_alike(pairs)
    return pairs


def check_index(pair: Pair, reader: IndexedReader) -> None:
    """DataError where the .idx is damaged, or is not the one that the manifest was written for."""
    check_structure(reader)
    if pair.manifest:
        path = idx_path(pair.prefix)
        _check_hash(path, "sha256", file_sha256(path), pair.manifest.idx_sha256)


@contextmanager
def checked_bin(pair: Pair) -> Iterator[BackgroundHash | None]:
    """Hash that the block must give the whole .bin; DataError at its end where the manifest has another, None without one.

    The CRC-32 is compared, which finds any single changed byte and any burst of up to 32 bits, or the SHA-256 where it has none.
    """
    if pair.manifest is None:
        yield None
        return
    path, expected = bin_path(pair.prefix), pair.manifest.bin_crc32
    with closing(BackgroundHash(with_sha256=expected is None)) as hashed:
        yield hashed
        if expected is None:
            _check_hash(path, "sha256", hashed.sha256(), pair.manifest.bin_sha256)
        else:
            _check_hash(path, "crc32", hashed.crc32, expected)


def _check_hash(path: Path, kind: str, found: object, expected: object) -> None:
    if found != expected:
        raise DataError(f"{path}: {kind} is {found}, the manifest says {expected}; write or copy the pair again")


def _check_paths(prefixes: Sequence[Prefix], output: Prefix) -> None:
    paths = [os.path.realpath(bin_path(prefix)) for prefix in prefixes]
    if os.path.realpath(bin_path(output)) in paths:
        raise DataError(f"{output}: is both an input and the output of the merge; choose another output")
    times = Counter(paths)
    for prefix, path in zip(prefixes, paths, strict=True):
        if times[path] > 1:
            raise DataError(f"{prefix}: given {times[path]} times; give each pair once")


def _open_pair(prefix: Prefix) -> Pair:
    manifest = load_manifest(prefix)
    with IndexedReader(prefix) as reader:
        pair = Pair(reader.prefix, reader.dtype, reader.num_documents, reader.num_sequences, reader.num_tokens, manifest)
    if manifest and (manifest.counts.num_documents, manifest.counts.num_tokens) != (pair.num_documents, pair.num_tokens):
        counts = f"{manifest.counts.num_documents} documents and {manifest.counts.num_tokens} tokens"
        found = f"{pair.num_documents} and {pair.num_tokens}"
        raise DataError(f"{manifest_path(prefix)}: says {counts}, the pair holds {found}; tokenize again or remove the manifest")
    return pair


def _check_alike(pairs: Sequence[Pair]) -> None:
    _refuse_difference("dtype", [(pair.prefix, pair.dtype.name, pair.dtype.name) for pair in pairs])
    known = [(pair.prefix, pair.manifest) for pair in pairs if pair.manifest]
    tokenizers = [(prefix, manifest.tokenizer) for prefix, manifest in known]
    # The name is that of a folder; the hash decides.
    named = [(prefix, record.sha256, f"{record.name} {record.sha256[:16]}") for prefix, record in tokenizers if record]
    _refuse_difference("tokenizer", named)
    policies = [(prefix, manifest.policy) for prefix, manifest in known]
    stated = [(prefix, p, f"bos {p.bos} ({p.bos_id}), eod {p.eod} ({p.eod_id})") for prefix, p in policies if p]
    _refuse_difference("policy", stated)


def _refuse_difference(what: str, values: Sequence[tuple[Path, Hashable, str]]) -> None:
    """Values are compared by their second item and shown by their third."""
    for prefix, value, shown in values:
        first, expected, expected_shown = values[0]
        if value != expected:
            difference = f"{what} is {shown}, that of {first} is {expected_shown}"
            raise DataError(f"{prefix}: {difference}; tokenize both alike or merge apart")
