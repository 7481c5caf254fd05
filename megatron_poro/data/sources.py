"""The .bin/.idx pairs of a run as numbered sequences, and what identifies their content.

A pair's tokens are cut every `sequence_length`, across documents; a sequence is read with one token more, the first
of its successor, as the label of its last position. Held-out sequences are the last ones of a source; the one token
of them that training ever sees is the first, as a label.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from data_indexing.errors import DataError
from data_indexing.format import bin_path, idx_path, manifest_path
from data_indexing.manifest import load_manifest
from data_indexing.reader import IndexedReader
from megatron_poro.config.schema import DataConfig, SourceConfig, ValidationConfig
from megatron_poro.errors import ConfigError

_SAMPLED_BLOCKS = 64
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Sequences:
    """`num_sequences` sequences of a pair, from its sequence number `first` on."""

    reader: IndexedReader
    sequence_length: int
    first: int
    num_sequences: int


@dataclass(frozen=True)
class Source:
    """An open training source, without the `num_held_out` sequences at its end."""

    config: SourceConfig
    fingerprint: str
    training: Sequences
    num_held_out: int


def open_source(config: DataConfig, position: int) -> Source:
    """Opens source `position` of `config`. Raises ConfigError when its tokens make no training sequence."""
    source = config.sources[position]
    reader = IndexedReader(source.path)
    total = count_sequences(reader, config.sequence_length)
    num_held_out = sum(held.last_sequences for held in config.validation if held.source == source.name)
    if total <= num_held_out:
        reader.close()
        key = f"data.sources[{position}] ({source.name})"
        raise ConfigError([_too_small(key, reader, config.sequence_length, num_held_out)])
    training = Sequences(reader, config.sequence_length, 0, total - num_held_out)
    return Source(source, fingerprint_of(reader), training, num_held_out)


def open_held_out(config: DataConfig, position: int, sources: tuple[Source, ...]) -> Sequences:
    """Opens held-out set `position` of `config`: a whole pair, or the end of one of `sources`."""
    held = config.validation[position]
    if held.source:
        return _end_of_source(held, sources)
    reader = IndexedReader(held.path)
    total = count_sequences(reader, config.sequence_length)
    if not total:
        reader.close()
        key = f"data.validation[{position}] ({held.name})"
        raise ConfigError([_too_small(key, reader, config.sequence_length, 0)])
    return Sequences(reader, config.sequence_length, 0, total)


def count_sequences(reader: IndexedReader, sequence_length: int) -> int:
    """Sequences in a pair, held-out ones included: the last token is only a label."""
    return max(reader.num_tokens - 1, 0) // sequence_length


def fingerprint_of(reader: IndexedReader) -> str:
    """Identifies a pair's content: a hash of both files' sizes and of samples of them, after the .bin's SHA-256 by its manifest.

    The manifest alone would not notice that the files beside it were replaced; samples alone not every change of a large file.
    Raises DataError when the manifest counts other tokens than the pair has.
    """
    manifest = load_manifest(reader.prefix)
    sampled = _sampled_fingerprint(bin_path(reader.prefix), idx_path(reader.prefix))
    if manifest is None:
        return sampled
    if manifest.counts.num_tokens != reader.num_tokens:
        counts = f"counts {manifest.counts.num_tokens} tokens, the pair holds {reader.num_tokens}"
        raise DataError(f"{manifest_path(reader.prefix)}: {counts}; copy all three files again, or remove the manifest")
    return f"sha256:{manifest.bin_sha256} {sampled}"


def _end_of_source(held: ValidationConfig, sources: tuple[Source, ...]) -> Sequences:
    training = next(source.training for source in sources if source.config.name == held.source)
    return Sequences(training.reader, training.sequence_length, training.num_sequences, held.last_sequences)


def _too_small(key: str, reader: IndexedReader, sequence_length: int, num_held_out: int) -> str:
    total = count_sequences(reader, sequence_length)
    length = f"data.sequence_length ({sequence_length}) + 1"
    has = f"{reader.prefix} has {reader.num_tokens} tokens, {total} sequences of {length}"
    if num_held_out:
        return f"{key}: {has}; data.validation holds {num_held_out} of them out and leaves none; hold out fewer"
    return f"{key}: {has}; give a larger pair or a smaller sequence_length"


def _sampled_fingerprint(*paths: Path) -> str:
    """A hash of each file's size and of evenly spread blocks of it; of every byte up to 4 MiB."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        last_start = max(size - _BLOCK_BYTES, 0)
        digest.update(f"{path.suffix} {size}\n".encode())
        with path.open("rb") as file:
            for n in range(_SAMPLED_BLOCKS):
                digest.update(os.pread(file.fileno(), _BLOCK_BYTES, last_start * n // (_SAMPLED_BLOCKS - 1)))
    return f"sampled:{digest.hexdigest()}"
