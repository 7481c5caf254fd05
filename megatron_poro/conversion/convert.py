"""Convert between Hugging Face and Megatron, and prove it.

A conversion is written beside its target, read back from disk, compared with its source tensor by tensor, given the
proof (`conversion.json`), and only then renamed. It uses the memory of one tensor and no GPU.
"""

import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from megatron_poro import __version__
from megatron_poro.config.schema import ModelConfig
from megatron_poro.conversion.checksums import check_files, hash_files, write_checksums
from megatron_poro.conversion.files import publish, write_json
from megatron_poro.conversion.hf_config import CONFIG, read_config, read_token_ids, to_huggingface
from megatron_poro.conversion.huggingface import copy_text_files, open_huggingface, write_huggingface
from megatron_poro.conversion.megatron import open_as, open_megatron, read_model_file, write_megatron, write_model_file
from megatron_poro.conversion.table import pieces
from megatron_poro.conversion.verify import compare, differing_keys
from megatron_poro.conversion.weights import Advance, Cast, Weights, total_bytes
from megatron_poro.errors import ConversionError

PROOF = "conversion.json"
FORMAT = 1
CASTS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def to_megatron(huggingface: Path, out: Path) -> dict[str, Any]:
    """Convert a Hugging Face directory to a Megatron checkpoint at `out`, which must not exist; returns the proof.

    Number types stay. Raises ConversionError before anything is written when the directory is not a complete Llama.
    """
    from data_indexing.progress import progress  # rich, for the command line only

    source = open_huggingface(huggingface)
    started = time.monotonic()
    with publish(out) as partial, progress("to-megatron", total=2 * total_bytes(source), unit="B") as advance:
        write_megatron(partial, source, advance=advance)
        hashes = _prove(source, open_as(partial, source.model), advance)
        proof = _build_proof(source, out, hashes) | {"seconds": round(time.monotonic() - started, 3)}
        origin = {**proof["source"], "token_ids": read_token_ids(source.directory)}
        write_model_file(partial, source.model, origin)
        write_json(partial / PROOF, proof)
        write_checksums(partial, hash_files(partial, (path.name for path in partial.iterdir())))
    return proof


def to_hf(
    checkpoint: Path,
    out: Path,
    *,
    reference: Path | None = None,
    dtype: str | None = None,
    max_position_embeddings: int | None = None,
) -> dict[str, Any]:
    """Convert a Megatron checkpoint to a Hugging Face directory at `out`, which must not exist; returns the proof.

    `reference` is a Hugging Face directory of the same vocabulary that gives tokenizer, generation settings and special
    token ids; `dtype` (a key of `CASTS`) casts, by default the checkpoint's number types stay. Raises ConversionError
    before anything is written when the checkpoint is not a complete model or the reference does not fit.
    """
    from data_indexing.progress import progress  # rich, for the command line only

    source = open_megatron(checkpoint)
    check_files(source.directory)
    weights = Cast(source, CASTS[dtype]) if dtype else source
    model = replace(source.model, max_position_embeddings=max_position_embeddings or source.model.max_position_embeddings)
    config = to_huggingface(model, _token_ids(source.directory, model, reference), weights.dtype(next(pieces(model))))
    started = time.monotonic()
    with publish(out) as partial, progress("to-hf", total=2 * total_bytes(weights), unit="B") as advance:
        write_json(partial / CONFIG, config)
        write_huggingface(partial, weights, advance=advance)
        if reference:
            copy_text_files(reference, partial)
        hashes = _prove(weights, open_huggingface(partial), advance)
        proof = _build_proof(weights, out, hashes) | {"seconds": round(time.monotonic() - started, 3)}
        write_json(partial / PROOF, proof)
    return proof


def _token_ids(checkpoint: Path, model: ModelConfig, reference: Path | None) -> Mapping[str, Any]:
    if reference is None:
        token_ids: Mapping[str, Any] = read_model_file(checkpoint)[1].get("token_ids", {})
        return token_ids
    vocab_size = read_config(reference).vocab_size
    if vocab_size != model.vocab_size:
        raise ConversionError(
            f"{reference} has vocab_size {vocab_size}, {checkpoint} has {model.vocab_size}; give the directory the run started from"
        )
    return read_token_ids(reference)


def _prove(source: Weights, target: Weights, advance: Advance) -> dict[str, str]:
    """SHA-256 of every tensor, after both sides were read from disk and found equal."""
    hashes, different = compare(source, target, advance=advance)
    different = differing_keys(source.model, target.model) + different
    if different:
        raise ConversionError(
            f"{target.directory} does not read back as it was written ({different[0]}; {len(different)} in all); "
            "check memory and disk, then convert again"
        )
    return hashes


def _build_proof(source: Weights, out: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return {
        "format": FORMAT,
        "source": {
            "name": source.directory.resolve().name,
            "weights_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        },
        "target": {"name": out.name},
        "cast": str(source.to).removeprefix("torch.") if isinstance(source, Cast) else None,
        "tensors": dict(hashes),
        "versions": {
            "megatron_poro": __version__,
            "torch": torch.__version__,
            "safetensors": version("safetensors"),
            "python": platform.python_version(),
        },
    }
