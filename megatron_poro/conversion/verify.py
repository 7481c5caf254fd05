"""Are two directories the same model? Each may be a Hugging Face directory or a Megatron checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_poro.config.schema import ModelConfig, head_dim
from megatron_poro.conversion.checksums import check_files
from megatron_poro.conversion.huggingface import open_huggingface
from megatron_poro.conversion.megatron import MODEL, open_megatron
from megatron_poro.conversion.table import pieces
from megatron_poro.conversion.weights import Advance, Weights, digest, total_bytes

NOT_MATHEMATICS = ("shape", "max_position_embeddings", "initializer_std")


def verify(one: Path, other: Path) -> list[str]:
    """What differs, one line each, empty when nothing does: keys of the model that change its output, tensors by name.

    Tensors are compared by SHA-256 after undoing the layout, and only when the keys agree. Raises ConversionError for a
    directory that is no complete model.
    """
    from data_indexing.progress import progress  # rich, for the command line only

    first, second = open_weights(one), open_weights(other)
    if different := differing_keys(first.model, second.model):
        return different
    with progress("verify", total=total_bytes(first), unit="B") as advance:
        _, different = compare(first, second, advance=advance)
    return different


def open_weights(directory: Path) -> Weights:
    """Open a directory of either format: a Megatron checkpoint is one that has a `model.json`."""
    if not (directory / MODEL).exists():
        return open_huggingface(directory)
    check_files(directory)
    return open_megatron(directory)


def compare(first: Weights, second: Weights, *, advance: Advance) -> tuple[dict[str, str], list[str]]:
    """SHA-256 of each tensor of `first` by its Hugging Face name, and a line for each that differs in `second`."""
    hashes: dict[str, str] = {}
    different = []
    for piece in pieces(first.model):
        for name, ours, theirs in zip(piece.names, first.read(piece), second.read(piece), strict=True):
            hashes[name] = digest(ours)
            if ours.dtype != theirs.dtype:
                different.append(f"{name}: {ours.dtype} against {theirs.dtype}")
            elif digest(theirs) != hashes[name]:
                different.append(f"{name}: numbers differ")
            advance(ours.nbytes)
    return hashes, different


def differing_keys(first: ModelConfig, second: ModelConfig) -> list[str]:
    """The keys that make two models compute different things, one line each."""
    one, other = _mathematics(first), _mathematics(second)
    return [f"model.{key}: {one[key]} against {other[key]}" for key in one if one[key] != other[key]]


def _mathematics(model: ModelConfig) -> dict[str, Any]:
    keys = asdict(model) | {"head_dim": head_dim(model)}
    if model.rope_scaling_factor == 1:
        keys |= dict.fromkeys(("rope_low_freq_factor", "rope_high_freq_factor", "rope_original_length"))
    return {key: value for key, value in keys.items() if key not in NOT_MATHEMATICS}
