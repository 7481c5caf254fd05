"""Documents of held-out pairs that stand in training sources too, found by hashing both: small files always, all with --hash."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from data_indexing.format import bin_path
from data_indexing.reader import IndexedReader
from megatron_poro.preflight.case import Case
from megatron_poro.preflight.findings import Finding, green, not_checked, red

SMALL_BYTES = 16 * 2**20
SHORTEST = 16
"""Shorter documents are alike by chance: headings, licences, empty pages."""
_BATCH_TOKENS = 1 << 20


def check_documents(case: Case) -> Iterator[Finding]:
    """No document of a held-out pair is one of a source's."""
    held = {f"data.validation[{n}] ({each.name})": each.path for n, each in enumerate(case.config.data.validation) if each.path}
    if not held or case.data is None:
        return
    large = [path for path in case.pairs.values() if bin_path(path).stat().st_size > SMALL_BYTES]
    if large and not case.reads_all:
        yield not_checked(
            "heldout.documents", f"{large[0]} is large: --hash compares held-out pairs with sources document by document"
        )
        return
    sources = [(source.name, source.path) for source in case.config.data.sources]
    owners = {digest: key for key, path in held.items() for digest in _digests(path)}
    shared = [(key, name, count) for name, path in sources for key, count in _count_shared(path, owners).items()]
    for key, name, count in shared:
        yield red(
            "heldout.documents", f"{key}: {count:,} of its documents stand in source {name} too; take them out of one of the two"
        )
    if not shared:
        yield green("heldout.documents", f"none of {len(owners):,} held-out documents stands in a source")


def _count_shared(path: str, owners: dict[bytes, str]) -> Counter[str]:
    return Counter(owners[digest] for digest in _digests(path) if digest in owners)


def _digests(path: str) -> Iterator[bytes]:
    """A hash of each document's ids, whatever their number type. Raises DataError where the index is damaged."""
    with closing(IndexedReader(path)) as reader:
        for first, end in reader.document_batches(_BATCH_TOKENS):
            offsets = reader.document_offsets(first, end)
            ids = reader.documents(first, end).astype(np.int64)  # [tokens of the batch]
            for start, stop in zip(offsets[:-1] - offsets[0], offsets[1:] - offsets[0], strict=True):
                if stop - start >= SHORTEST:
                    yield hashlib.blake2b(ids[start:stop].data, digest_size=16).digest()
