"""Are two directories the same model? Each may be of any format."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_indexing.progress import Advance, progress
from megatron_poro.config.sameness import differing_keys
from megatron_poro.conversion.arrays import Record
from megatron_poro.conversion.opening import knows_its_vocabulary, open_weights, padded_vocabulary
from megatron_poro.conversion.table import Piece, pieces
from megatron_poro.conversion.torch_archive import check_records
from megatron_poro.conversion.weights import Weights, digest, total_bytes
from megatron_poro.conversion.work import Tell, run_jobs


def verify(one: Path, other: Path, *, vocab_size: int | None = None, workers: int = 1) -> list[str]:
    """What differs, one line each, empty when nothing does: keys of the model that change its output, tensors by name.

    Tensors are compared by SHA-256 after undoing the layout, and only when the keys agree. Raises ConversionError for a
    directory that is no complete model, or whose own checksums do not hold.
    """
    first, second = _open_both(one, other, vocab_size)
    if different := differing_keys(first.model, second.model):
        return different
    if types := _different_types(first, second):
        return [types]
    with progress("verify", total=2 * total_bytes(first) + checked_bytes(first) + checked_bytes(second), unit="B") as advance:
        check_sums(first, workers=workers, advance=advance)
        check_sums(second, workers=workers, advance=advance)
        _, different = compare(first, second, workers=workers, advance=advance)
    return different


def _different_types(first: Weights, second: Weights) -> str:
    """A line when no tensor of one has the number type that it has in the other."""
    types = [(first.dtype(piece), second.dtype(piece)) for piece in pieces(first.model)]
    alike = any(one == other for one, other in types)
    return "" if alike else f"the number types differ: {types[0][0]} against {types[0][1]}; compare with a cast export"


def _open_both(one: Path, other: Path, vocab_size: int | None) -> tuple[Weights, Weights]:
    """Open a directory that does not know its vocabulary with that of the other, or the smaller padded one of both."""
    if knows_its_vocabulary(one):
        first = open_weights(one)
        return first, open_weights(other, like=None if vocab_size else first.model, vocab_size=vocab_size)
    if knows_its_vocabulary(other):
        second = open_weights(other)
        return open_weights(one, like=None if vocab_size else second.model, vocab_size=vocab_size), second
    size = vocab_size or min(padded_vocabulary(one), padded_vocabulary(other))
    return open_weights(one, vocab_size=size), open_weights(other, vocab_size=size)


def compare(first: Weights, second: Weights, *, workers: int = 1, advance: Advance) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """SHA-256 of each tensor in `first` and in `second` by its Hugging Face name, and a line for each that differs."""
    jobs = [_CompareJob(first, second, piece, part) for piece in pieces(first.model) for part in range(len(piece.row.parts))]
    results = run_jobs(jobs, workers=workers, advance=advance)
    return {name: hashes for name, hashes, _ in results}, [line for _, _, line in results if line]


@dataclass(frozen=True)
class _CompareJob:
    """Hashes one tensor on both sides."""

    first: Weights
    second: Weights
    piece: Piece
    part: int

    def __call__(self, tell: Tell) -> tuple[str, tuple[str, str], str]:
        name = self.piece.names[self.part]
        hashes = digest(self.first, self.piece, self.part, tell), digest(self.second, self.piece, self.part, tell)
        types = self.first.dtype(self.piece), self.second.dtype(self.piece)
        if types[0] != types[1]:
            return name, hashes, f"{name}: {types[0]} against {types[1]}"
        return name, hashes, f"{name}: numbers differ" if hashes[0] != hashes[1] else ""


def hash_weights(weights: Weights, *, workers: int, advance: Advance) -> dict[str, str]:
    """SHA-256 of each tensor by its Hugging Face name."""
    parts = [(piece, part) for piece in pieces(weights.model) for part in range(len(piece.row.parts))]
    jobs = [partial(digest, weights, piece, part) for piece, part in parts]
    hashes = run_jobs(jobs, workers=workers, advance=advance)
    return {piece.names[part]: found for (piece, part), found in zip(parts, hashes, strict=True)}


def checked_bytes(weights: Weights) -> int:
    """Bytes that have a checksum of their own."""
    return sum(record.num_bytes for record in weights.records() if record.crc32 is not None)


def check_sums(weights: Weights, *, workers: int, advance: Advance) -> None:
    """Read all that has a checksum and compare it. Raises ConversionError for the first that does not hold."""
    records = [record for record in weights.records() if record.crc32 is not None]
    shares = [records[n::workers] for n in range(workers)]
    run_jobs([_check_job(share) for share in shares], workers=workers, advance=advance)


def _check_job(records: list[Record]) -> Callable[[Tell], None]:
    def check(tell: Tell) -> None:
        for count in check_records(records):
            tell(count, "checksums of the source")

    return check
