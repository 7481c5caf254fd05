"""Convert between Hugging Face and Megatron, and prove it.

A conversion is written beside its target, both sides are opened again from disk and compared tensor by tensor, the proof
(`conversion.json`) is put with it, and only then it is renamed. It uses the memory of a block a thread and no GPU.
"""

import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_indexing.progress import Advance, progress
from megatron_poro import __version__
from megatron_poro.config.schema import ModelConfig
from megatron_poro.conversion.card import write_card
from megatron_poro.conversion.checksums import check_small_files, hash_files, write_checksums
from megatron_poro.conversion.files import LOCK, publish, write_json
from megatron_poro.conversion.hf_config import CONFIG, ignored_keys, read_config, read_token_ids, to_huggingface
from megatron_poro.conversion.huggingface import COPIED, HuggingFaceModel, copy_text_files, open_huggingface, write_huggingface
from megatron_poro.conversion.megatron import MODEL, open_as, read_model_file, write_megatron, write_model_file
from megatron_poro.conversion.megatron_args import build_args
from megatron_poro.conversion.megatron_torch import open_torch, whole_model, write_torch
from megatron_poro.conversion.opening import RELEASE, TRACKER, open_weights
from megatron_poro.conversion.table import pieces
from megatron_poro.conversion.torch_dist import write_metadata
from megatron_poro.conversion.verify import check_sums, checked_bytes, compare, differing_keys
from megatron_poro.conversion.weights import Cast, Weights, total_bytes
from megatron_poro.errors import ConversionError
from megatron_poro.topology import Layout

PROOF = "conversion.json"
FORMAT = 2
CASTS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Effort:
    """How a conversion works: threads, and whether it is proved."""

    workers: int = 2
    proof: bool = True


@dataclass(frozen=True)
class Like:
    """What a source may not say of its model: a Hugging Face directory of the same model, or the size of the vocabulary.

    Only Megatron-LM's checkpoints need one of them to be read.
    """

    reference: Path | None = None
    vocab_size: int | None = None


@dataclass(frozen=True)
class MegatronLM:
    """A target that Megatron-LM's --load takes: `torch_dist`, or `torch` with a file for each rank of a layout.

    `local` names the norms as Megatron-LM's layers without Transformer Engine do; `torch_dist` has one name for both.
    """

    format: str = "torch_dist"
    layout: Layout = Layout()
    local: bool = False


def to_megatron(
    source: Path,
    out: Path,
    *,
    like: Like = Like(),
    dtype: str | None = None,
    megatron_lm: MegatronLM | None = None,
    effort: Effort = Effort(),
) -> dict[str, Any]:
    """Convert a model directory to a Megatron checkpoint at `out`, which must not exist; returns the proof.

    `dtype` (a key of `CASTS`) casts, by default number types stay. Raises ConversionError before anything is written when the
    source is not a complete Llama.
    """
    opened = _open_source(source, like)
    weights = Cast(opened, CASTS[dtype]) if dtype else opened
    with publish(out, num_bytes=total_bytes(weights)) as partial, _Conversion("to-megatron", weights, effort) as conversion:
        target = _write_for_megatron_lm if megatron_lm else _write_checkpoint
        proof = conversion.prove(target(partial, weights, megatron_lm or MegatronLM(), conversion), out)
        if not megatron_lm:
            origin = {**proof["source"], "token_ids": _token_ids(opened, like.reference)}
            write_model_file(partial, weights.model, origin)
        write_json(partial / PROOF, proof)
        if conversion.hashes:
            others = [path.name for path in partial.iterdir() if path.name not in {LOCK, *conversion.hashes}]
            write_checksums(partial, conversion.hashes | hash_files(partial, others))
    return proof


def to_hf(
    checkpoint: Path,
    out: Path,
    *,
    like: Like = Like(),
    dtype: str | None = None,
    max_position_embeddings: int | None = None,
    effort: Effort = Effort(),
) -> dict[str, Any]:
    """Convert a Megatron checkpoint to a Hugging Face directory at `out`, which must not exist; returns the proof.

    The reference gives tokenizer, generation settings and special token ids; `dtype` (a key of `CASTS`) casts, by default the
    checkpoint's number types stay. Raises ConversionError before anything is written when the checkpoint is not a complete
    model or the reference does not fit.
    """
    source, reference = _open_source(checkpoint, like), like.reference
    weights = Cast(source, CASTS[dtype]) if dtype else source
    model = replace(source.model, max_position_embeddings=max_position_embeddings or source.model.max_position_embeddings)
    config = to_huggingface(model, _token_ids(source, reference), weights.dtype(next(pieces(model))))
    with publish(out, num_bytes=total_bytes(weights)) as partial, _Conversion("to-hf", weights, effort) as conversion:
        write_json(partial / CONFIG, config)
        write_huggingface(partial, weights, workers=effort.workers, advance=conversion.advance)
        copied = copy_text_files(reference, partial) if reference else []
        proof = conversion.prove(open_huggingface(partial), out)
        write_json(partial / PROOF, proof)
        write_card(partial, source.directory, model, proof, has_tokenizer=any("tokenizer" in name for name in copied))
    return proof


class _Conversion:
    """The progress, times and proof of one conversion."""

    def __init__(self, what: str, source: Weights, effort: Effort) -> None:
        self.source, self.effort = source, effort
        self.hashes: dict[str, Any] = {}
        size = total_bytes(source)
        self._bar = progress(what, total=size + (2 * size + checked_bytes(source) if effort.proof else 0), unit="B")
        self._started = time.monotonic()

    def __enter__(self) -> "_Conversion":
        self.advance: Advance = self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def prove(self, target: Weights, out: Path) -> dict[str, Any]:
        """The content of `conversion.json`; raises ConversionError naming the first tensor that did not come out as it went in."""
        written = time.monotonic()
        hashes: Mapping[str, tuple[str, str]] = self._compare(target) if self.effort.proof else {}
        seconds = {"write": written - self._started, "prove": time.monotonic() - written}
        return _describe(self.source, out, hashes) | {"seconds": {name: round(took, 3) for name, took in seconds.items()}}

    def _compare(self, target: Weights) -> dict[str, tuple[str, str]]:
        workers = self.effort.workers
        check_sums(self.source, workers=workers, advance=self.advance)
        hashes, different = compare(self.source, target, workers=workers, advance=self.advance)
        different = differing_keys(self.source.model, target.model) + different
        if different:
            raise ConversionError(
                f"{target.directory} does not read back as it was written ({different[0]}; {len(different)} in all); "
                "check memory and disk, then convert again"
            )
        return hashes


def _open_source(directory: Path, like: Like) -> Weights:
    """Open what is converted, as the model that it says it is and that the reference is."""
    model = _reference_model(like.reference) if like.reference else None
    weights = open_weights(directory, like=model, vocab_size=like.vocab_size)
    check_small_files(weights.directory)
    if model and (different := differing_keys(model, weights.model)):
        raise ConversionError(
            f"{like.reference} is another model than {directory}: {different[0]} there; give the one that the run started from"
        )
    return weights


def _reference_model(reference: Path) -> ModelConfig | None:
    """The model that a reference describes; None where it has only a tokenizer and what goes with it."""
    if not reference.is_dir() or not any((reference / name).is_file() for name in (CONFIG, *COPIED)):
        raise ConversionError(f"{reference} holds neither {CONFIG} nor a tokenizer; give a Hugging Face directory")
    return read_config(reference) if (reference / CONFIG).is_file() else None


def _write_checkpoint(partial: Path, weights: Weights, _: MegatronLM, conversion: _Conversion) -> Weights:
    effort = conversion.effort
    files = write_megatron(partial, weights, hashed=effort.proof, workers=effort.workers, advance=conversion.advance)
    write_metadata(partial, files)
    conversion.hashes = {file.name: {"bytes": file.num_bytes, "sha256": file.sha256} for file in files if file.sha256}
    return open_as(partial, weights.model)


def _write_for_megatron_lm(partial: Path, weights: Weights, target: MegatronLM, conversion: _Conversion) -> Weights:
    (partial / TRACKER).write_text(f"{RELEASE}\n")
    directory, model = partial / RELEASE, weights.model
    directory.mkdir()
    if target.format == "torch":
        write_torch(
            directory, weights, target.layout, local=target.local, workers=conversion.effort.workers, advance=conversion.advance
        )
        return whole_model(open_torch(directory), model)
    args = build_args(model, weights.dtype(next(pieces(model))), tensor=1, pipeline=1, virtual=1)
    files = write_megatron(directory, weights, workers=conversion.effort.workers, advance=conversion.advance)
    write_metadata(directory, files, common={"args": args, "checkpoint_version": 3.0, "iteration": 0})
    return open_as(directory, model)


def _token_ids(weights: Weights, reference: Path | None) -> Mapping[str, Any]:
    """The special token ids of the reference, of a Hugging Face source, or of what the checkpoint was made from."""
    for directory in (reference, weights.directory if isinstance(weights, HuggingFaceModel) else None):
        if directory and (directory / CONFIG).is_file():
            return read_token_ids(directory)
    if not (weights.directory / MODEL).is_file():
        return {}
    token_ids: Mapping[str, Any] = read_model_file(weights.directory)[1].get("token_ids", {})
    return token_ids


def _describe(source: Weights, out: Path, hashes: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    sides = [{name: pair[side] for name, pair in hashes.items()} for side in (0, 1)]
    return {
        "format": FORMAT,
        "proved": bool(hashes),
        "source": {"name": source.directory.resolve().name, "weights_sha256": _hash_all(sides[0])},
        "target": {"name": out.name, "weights_sha256": _hash_all(sides[1])},
        "cast": str(source.to).removeprefix("torch.") if isinstance(source, Cast) else None,
        "ignored_config_keys": ignored_keys(source.directory) if isinstance(source, HuggingFaceModel) else {},
        "tensors": sides[0],
        "versions": {
            "megatron_poro": __version__,
            "torch": torch.__version__,
            "safetensors": version("safetensors"),
            "python": platform.python_version(),
        },
    }


def _hash_all(hashes: Mapping[str, str]) -> str | None:
    """One hash over the names and hashes of all tensors: that of the model, in whatever format it lies."""
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest() if hashes else None
