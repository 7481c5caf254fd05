"""Distributed checkpoints of given chunks, for tests."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from megatron_poro.conversion.torch_dist import PendingChunk, write_chunks, write_metadata

Chunk = tuple[str, torch.Tensor, tuple[int, ...], tuple[int, ...]]
"""Name, numbers, offsets, shape of the whole tensor."""


def write_checkpoint(directory: Path, chunks: Sequence[Chunk], *, per_file: int = 1000) -> Path:
    """Write chunks as a checkpoint, `per_file` to a file."""
    pending = [
        PendingChunk(name, shape, offsets, tuple(numbers.shape), numbers.dtype, partial(_copy, numbers))
        for name, numbers, offsets, shape in chunks
    ]
    parts = [pending[n : n + per_file] for n in range(0, len(pending), per_file)]
    files = [write_chunks(directory / f"__0_{number}.distcp", part, hashed=False) for number, part in enumerate(parts)]
    write_metadata(directory, files)
    return directory


def _copy(numbers: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(numbers)
