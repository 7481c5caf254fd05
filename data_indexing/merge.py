"""Put several pairs into one, in order or with all their documents shuffled; any number of them, in bounded memory."""

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_indexing.errors import DataError
from data_indexing.format import HEADER_BYTES, Prefix, bin_path
from data_indexing.manifest import Counts, Manifest, Part
from data_indexing.pairs import Pair, check_index, checked_bin, open_pairs
from data_indexing.progress import progress
from data_indexing.reader import IndexedReader
from data_indexing.shards import check_shards
from data_indexing.shuffle import DEFAULT_MEMORY_BYTES, check_seed, write_shuffled
from data_indexing.streams import HASHES_BEHIND, read_exactly, run_ahead
from data_indexing.structure import BATCH_SEQUENCES
from data_indexing.writer import IndexedWriter, check_output

Value = TypeVar("Value")

# Small enough for the second-level cache, where the hash and the write find what was read.
_PIECE_BYTES = 1 << 20
_PIECES_AHEAD = 6


def merge(
    prefixes: Sequence[Prefix],
    output: Prefix,
    *,
    shuffle_seed: int | None = None,
    shuffle_memory_bytes: int = DEFAULT_MEMORY_BYTES,
    allow_missing_shards: bool = False,
    overwrite: bool = False,
) -> Counts:
    """Concatenate pairs; with a seed, in one random order of all documents that is the same on every machine.

    Pairs of another dtype, tokenizer or BOS/EOD policy are refused, and so are damaged ones: what is read of a pair is
    compared with the hashes of its manifest. Where a pair has none, the merged one names no tokenizer and no policy.
    Shards of one whole must all be there, once, unless `allow_missing_shards`.
    """
    pairs = open_pairs(prefixes, output)
    if not allow_missing_shards:
        check_shards(pairs)
    check_output(output, overwrite=overwrite)
    num_passes = 1 if shuffle_seed is None else 2
    _check_space(pairs, output, num_copies=num_passes)
    total_bytes = sum(pair.num_bytes for pair in pairs) * num_passes
    with IndexedWriter(output, pairs[0].dtype) as writer:
        with progress("merge", total_bytes, "B") as advance:
            if shuffle_seed is None:
                _write_in_order(pairs, writer, advance)
            else:
                check_seed(shuffle_seed)
                write_shuffled(pairs, writer, seed=shuffle_seed, memory_bytes=shuffle_memory_bytes, advance=advance)
        writer.seal()
        manifest = _merged_manifest(pairs, writer, shuffle_seed=shuffle_seed)
        writer.add_manifest(manifest)
    return manifest.counts


def find_pairs(folder: Path) -> list[Path]:
    """Prefixes of all pairs in a folder, by name; a file without its other half is an error."""
    try:
        names = {path.name for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}; give a folder of .bin/.idx pairs") from None
    stems = {name[:-4] for name in names if name.endswith((".bin", ".idx"))}
    for half in sorted(stem + suffix for stem in stems for suffix in (".bin", ".idx") if stem + suffix not in names):
        raise DataError(f"{folder / half}: missing, its other half is there; complete the pair or move it away")
    if not stems:
        raise DataError(f"{folder}: holds no .bin/.idx pairs; give the folder that does")
    return [folder / stem for stem in sorted(stems)]


def _check_space(pairs: Sequence[Pair], output: Prefix, *, num_copies: int) -> None:
    index_bytes = sum(12 * pair.num_sequences + 8 * pair.num_documents for pair in pairs) + HEADER_BYTES + 8
    needed = num_copies * (sum(pair.num_bytes for pair in pairs) + index_bytes)
    free = shutil.disk_usage(Path(output).parent).free
    if needed > free:
        sizes = f"needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free"
        raise DataError(f"{output}: the merge {sizes}; free space or choose another output")


def _write_in_order(pairs: Sequence[Pair], writer: IndexedWriter, advance: Callable[[int], None]) -> None:
    for pair in pairs:
        _append_index(pair, writer)
    for data in run_ahead(_pieces(pairs), _PIECES_AHEAD):
        writer.add_bytes(data)
        advance(data.nbytes)


def _append_index(pair: Pair, writer: IndexedWriter) -> None:
    with IndexedReader(pair.prefix) as reader:
        check_index(pair, reader)
        for start in range(0, reader.num_documents, BATCH_SEQUENCES):
            indices = reader.document_indices[start : start + BATCH_SEQUENCES + 1]
            writer.add_lengths(reader.sequence_lengths[indices[0] : indices[-1]], np.diff(indices))


def _pieces(pairs: Sequence[Pair]) -> Iterator[memoryview]:
    """The .bin files in pieces, each whole until all buffers but it have had their turn."""
    buffers = deque(memoryview(bytearray(_PIECE_BYTES)) for _ in range(_PIECES_AHEAD + HASHES_BEHIND + 2))
    for pair in pairs:
        path = bin_path(pair.prefix)
        done = 0
        with path.open("rb", buffering=0) as stream, checked_bin(pair) as hashed:
            while count := read_exactly(stream.fileno(), buffers[0], done):
                if hashed:
                    hashed.update(buffers[0][:count])
                yield buffers[0][:count]
                buffers.rotate(-1)
                done += count
            if done != pair.num_bytes:
                raise DataError(f"{path}: read {done} bytes, expected {pair.num_bytes}; the file changed, merge again")


def _merged_manifest(pairs: Sequence[Pair], writer: IndexedWriter, *, shuffle_seed: int | None) -> Manifest:
    known = [pair.manifest for pair in pairs if pair.manifest]
    complete = len(known) == len(pairs)
    return Manifest(
        tokenizer=_common([manifest.tokenizer for manifest in known]) if complete else None,
        policy=_common([manifest.policy for manifest in known]) if complete else None,
        dtype=writer.dtype.name,
        counts=_sum_counts(pairs, writer),
        inputs=tuple(chain.from_iterable(manifest.inputs for manifest in known)),
        bin_sha256=writer.bin_sha256,
        bin_crc32=writer.bin_crc32,
        idx_sha256=writer.idx_sha256,
        parts=tuple(_part(pair) for pair in pairs),
        shuffle_seed=shuffle_seed,
    )


def _sum_counts(pairs: Sequence[Pair], writer: IndexedWriter) -> Counts:
    """Every count added up; null where one of the pairs does not know it."""
    parts = [pair.manifest.counts if pair.manifest else None for pair in pairs]
    names = [field.name for field in fields(Counts)]
    sums: dict[str, Any] = {name: _total([getattr(counts, name, None) for counts in parts]) for name in names}
    return Counts(**(sums | {"num_documents": writer.num_documents, "num_tokens": writer.num_tokens}))


def _part(pair: Pair) -> Part:
    hashes = (pair.manifest.bin_sha256, pair.manifest.idx_sha256) if pair.manifest else (None, None)
    return Part(pair.prefix.name, pair.num_documents, pair.num_tokens, *hashes)


def _common(values: Sequence[Value | None]) -> Value | None:
    """The value that all share, None where one of them is not known."""
    return values[0] if None not in values else None


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
