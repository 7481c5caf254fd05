"""What all formats look like from outside: a model's weights, read region by region in Hugging Face's layout."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from megatron_poro.config.schema import ModelConfig
from megatron_poro.conversion.arrays import Record, Region, StoredArray, as_bytes, flat_bytes
from megatron_poro.conversion.table import Piece, pieces
from megatron_poro.conversion.work import Tell

BLOCK_BYTES = 2**24
"""Numbers that are in memory at a time, in each thread."""


class Weights(Protocol):
    """An opened model directory of any format, complete and of the right shapes."""

    @property
    def directory(self) -> Path:
        """Where it lies."""

    @property
    def model(self) -> ModelConfig:
        """The model's shape."""

    def dtype(self, piece: Piece) -> torch.dtype:
        """Number type of a piece."""

    def read_into(self, out: torch.Tensor, piece: Piece, part: int, region: Region) -> None:
        """Fill `out` with a region of the piece's part number `part`, as Hugging Face lays it out, from disk."""

    def records(self) -> Iterator[Record]:
        """All that the weights are read from, with the checksums that the format has."""


@dataclass(frozen=True)
class MegatronWeights:
    """Weights in Megatron's layout, one array a row of the table; stacked ones have a leading axis of layers."""

    directory: Path
    model: ModelConfig
    arrays: dict[str, StoredArray]

    def dtype(self, piece: Piece) -> torch.dtype:
        """Number type of a piece."""
        return self.arrays[piece.row.megatron].dtype

    def read_into(self, out: torch.Tensor, piece: Piece, part: int, region: Region) -> None:
        """Fill `out` with a region of a part; padding rows of the vocabulary are never read."""
        array, layer = self.arrays[piece.row.megatron], (slice(piece.layer, piece.layer + 1),) if piece.row.stacked else ()
        rows = region[0]
        for run in piece.runs(self.model):
            first, end = max(rows.start, run.part_row), min(rows.stop, run.part_row + run.num_rows)
            if run.part == part and first < end:
                shift = run.merged_row - run.part_row
                place = out[first - rows.start : end - rows.start]
                wanted = (*layer, slice(first + shift, end + shift), *region[1:])
                array.read_into(place.unsqueeze(0) if layer else place, wanted)

    def records(self) -> Iterator[Record]:
        """What the boxes of all arrays lie in, each once."""
        yield from dict.fromkeys(record for array in self.arrays.values() for record in array.records())


@dataclass(frozen=True)
class Cast:
    """Weights as they are in another number type."""

    source: Weights
    to: torch.dtype

    @property
    def directory(self) -> Path:
        """Where the uncast weights lie."""
        return self.source.directory

    @property
    def model(self) -> ModelConfig:
        """The model's shape."""
        return self.source.model

    def dtype(self, piece: Piece) -> torch.dtype:
        """The type that is cast to, for every piece."""
        return self.to

    def read_into(self, out: torch.Tensor, piece: Piece, part: int, region: Region) -> None:
        """Fill `out` with a region, cast."""
        uncast = torch.empty(out.shape, dtype=self.source.dtype(piece))
        self.source.read_into(uncast, piece, part, region)
        out.copy_(uncast)

    def records(self) -> Iterator[Record]:
        """Those of the uncast weights."""
        return self.source.records()


def total_bytes(weights: Weights) -> int:
    """Bytes of all tensors together."""
    return sum(
        math.prod(shape) * weights.dtype(piece).itemsize for piece in pieces(weights.model) for shape in piece.shapes(weights.model)
    )


def read_merged_into(out: torch.Tensor, weights: Weights, piece: Piece, region: Region) -> None:
    """Fill `out` with a region of a piece in Megatron's layout, without the axis of layers."""
    rows = region[0]
    for run in piece.runs(weights.model):
        first, end = max(rows.start, run.merged_row), min(rows.stop, run.merged_row + run.num_rows)
        if first < end:
            shift = run.part_row - run.merged_row
            place = out[first - rows.start : end - rows.start]
            weights.read_into(place, piece, run.part, (slice(first + shift, end + shift), *region[1:]))


def part_blocks(weights: Weights, piece: Piece, part: int) -> Iterator[memoryview]:
    """The bytes of a part, block after block. A block is overwritten by the next."""
    shape, dtype = piece.shapes(weights.model)[part], weights.dtype(piece)
    below = tuple(slice(0, size) for size in shape[1:])
    buffer = torch.empty((block_rows(shape, dtype), *shape[1:]), dtype=dtype)
    for first in range(0, shape[0], len(buffer)):
        out = buffer[: shape[0] - first]
        weights.read_into(out, piece, part, (slice(first, first + len(out)), *below))
        yield flat_bytes(as_bytes(out))


def block_rows(shape: tuple[int, ...], dtype: torch.dtype, num_bytes: int = BLOCK_BYTES) -> int:
    """Rows of a tensor that make a block."""
    return max(1, min(shape[0], num_bytes // (math.prod(shape[1:]) * dtype.itemsize)))


def digest(weights: Weights, piece: Piece, part: int, tell: Tell) -> str:
    """SHA-256 of the numbers of a part, as Hugging Face lays them out."""
    sha256 = hashlib.sha256()
    for block in part_blocks(weights, piece, part):
        sha256.update(block)
        tell(len(block), piece.names[part])
    return sha256.hexdigest()
