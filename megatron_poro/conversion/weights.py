"""What both formats look like from outside: a model's weights, read piece by piece in Hugging Face's layout."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from megatron_poro.config.schema import ModelConfig
from megatron_poro.conversion.table import Piece, pieces

Advance = Callable[[int], object]
"""Takes the bytes that were just dealt with."""


class Weights(Protocol):
    """An opened model directory of either format, complete and of the right shapes."""

    @property
    def directory(self) -> Path:
        """Where it lies."""

    @property
    def model(self) -> ModelConfig:
        """The model's shape."""

    def dtype(self, piece: Piece) -> torch.dtype:
        """Number type of a piece."""

    def read(self, piece: Piece) -> tuple[torch.Tensor, ...]:
        """The piece's parts in Hugging Face's layout, from disk."""


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

    def read(self, piece: Piece) -> tuple[torch.Tensor, ...]:
        """The piece's parts, cast."""
        return tuple(part.to(self.to) for part in self.source.read(piece))


def total_bytes(weights: Weights) -> int:
    """Bytes of all tensors together."""
    return sum(
        math.prod(shape) * weights.dtype(piece).itemsize for piece in pieces(weights.model) for shape in piece.shapes(weights.model)
    )


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The numbers of a tensor in order, as a file holds them."""
    flat: memoryview = tensor.contiguous().view(torch.uint8).numpy().data.cast("B")
    return flat


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of the numbers of a tensor."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()
