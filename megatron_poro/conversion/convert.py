"""Convert between Hugging Face and Megatron, and prove it.

A conversion is written beside its target, both sides are opened again from disk and compared tensor by tensor, the proof
(`conversion.json`) is put with it, and only then it is renamed. It uses the memory of a block a thread and no GPU.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from megatron_poro.config.sameness import differing_keys
from megatron_poro.config.schema import ModelConfig
from megatron_poro.conversion.card import write_card
from megatron_poro.conversion.checksums import check_small_files, hash_files, write_checksums
from megatron_poro.conversion.files import LOCK, publish, write_json
from megatron_poro.conversion.hf_config import CONFIG, read_config, read_token_ids, to_huggingface
from megatron_poro.conversion.huggingface import (
    COPIED,
    HuggingFaceModel,
    copy_text_files,
    is_huggingface,
    open_huggingface,
    write_huggingface,
)
from megatron_poro.conversion.megatron import MODEL, open_as, read_model_file, write_megatron, write_model_file
from megatron_poro.conversion.megatron_args import build_args
from megatron_poro.conversion.megatron_torch import open_torch, whole_model, write_torch
from megatron_poro.conversion.opening import RELEASE, TRACKER, open_weights
from megatron_poro.conversion.proof import PROOF, PROVED, Conversion, Effort
from megatron_poro.conversion.table import pieces
from megatron_poro.conversion.torch_dist import write_metadata
from megatron_poro.conversion.weights import Cast, Weights, total_bytes
from megatron_poro.errors import ConversionError
from megatron_poro.topology import Layout

CASTS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


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
    effort: Effort = PROVED,
) -> dict[str, Any]:
    """Convert a model directory to a Megatron checkpoint at `out`, which must not exist; returns the proof.

    `dtype` (a key of `CASTS`) casts, by default number types stay. Raises ConversionError before anything is written when the
    source is not a complete Llama.
    """
    opened = _open_source(source, out, like)
    weights = Cast(opened, CASTS[dtype]) if dtype else opened
    with publish(out, num_bytes=total_bytes(weights)) as partial, Conversion("to-megatron", weights, effort) as conversion:
        if megatron_lm:
            proof = conversion.prove(_write_for_megatron_lm(partial, megatron_lm, conversion), out)
            write_json(partial / PROOF, proof)
            return proof
        files = _write_checkpoint(partial, conversion)
        proof = conversion.prove(open_as(partial, weights.model), out)
        write_model_file(partial, weights.model, proof["source"] | _origin(opened, like.reference))
        write_json(partial / PROOF, proof)
        if effort.proof:
            others = [path.name for path in partial.iterdir() if path.name not in {LOCK, *files}]
            write_checksums(partial, files | hash_files(partial, others))
    return proof


def to_hf(
    checkpoint: Path,
    out: Path,
    *,
    like: Like = Like(),
    dtype: str | None = None,
    max_position_embeddings: int | None = None,
    effort: Effort = PROVED,
) -> dict[str, Any]:
    """Convert a Megatron checkpoint to a Hugging Face directory at `out`, which must not exist; returns the proof.

    The reference gives tokenizer, generation settings and special token ids; `dtype` (a key of `CASTS`) casts, by default the
    checkpoint's number types stay. Raises ConversionError before anything is written when the checkpoint is not a complete
    model or the reference does not fit.
    """
    if is_huggingface(checkpoint) and not (checkpoint / MODEL).is_file():
        raise ConversionError(f"{checkpoint} is a Hugging Face directory already; give a checkpoint, or copy the folder")
    source, reference = _open_source(checkpoint, out, like), like.reference
    weights = Cast(source, CASTS[dtype]) if dtype else source
    model = replace(source.model, max_position_embeddings=max_position_embeddings or source.model.max_position_embeddings)
    config = to_huggingface(model, _token_ids(source, reference), weights.dtype(next(pieces(model))))
    with publish(out, num_bytes=total_bytes(weights)) as partial, Conversion("to-hf", weights, effort) as conversion:
        write_json(partial / CONFIG, config)
        write_huggingface(partial, weights, workers=effort.workers, advance=conversion.advance)
        copied = copy_text_files(reference, partial) if reference else []
        proof = conversion.prove(open_huggingface(partial), out)
        write_json(partial / PROOF, proof)
        write_card(partial, source.directory, model, proof, has_tokenizer=any("tokenizer" in name for name in copied))
    return proof


def _open_source(directory: Path, out: Path, like: Like) -> Weights:
    """Open what is converted, as the model that it says it is and that the reference is."""
    if out.resolve().is_relative_to(directory.resolve()):
        raise ConversionError(f"{out} lies in {directory}, which is not to be changed; choose another output")
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
    if reference.is_file():
        raise ConversionError(f"{reference} is a file; give its folder")
    if not any((reference / name).is_file() for name in (CONFIG, *COPIED)):
        raise ConversionError(f"{reference} holds neither {CONFIG} nor a tokenizer; give a Hugging Face directory")
    return read_config(reference) if (reference / CONFIG).is_file() else None


def _write_checkpoint(partial: Path, conversion: Conversion) -> dict[str, Any]:
    """Write a checkpoint of ours; returns size and hash of its tensor files."""
    effort, weights = conversion.effort, conversion.source
    files = write_megatron(partial, weights, hashed=effort.proof, workers=effort.workers, advance=conversion.advance)
    write_metadata(partial, files)
    return {file.name: {"bytes": file.num_bytes, "sha256": file.sha256} for file in files}


def _write_for_megatron_lm(partial: Path, target: MegatronLM, conversion: Conversion) -> Weights:
    """Write a folder for Megatron-LM's --load, and open it again."""
    effort, weights = conversion.effort, conversion.source
    directory, model = partial / RELEASE, weights.model
    (partial / TRACKER).write_text(f"{RELEASE}\n")
    directory.mkdir()
    if target.format == "torch":
        write_torch(directory, weights, target.layout, local=target.local, workers=effort.workers, advance=conversion.advance)
        return whole_model(open_torch(directory), model)
    args = build_args(model, weights.dtype(next(pieces(model))), tensor=1, pipeline=1, virtual=1)
    files = write_megatron(directory, weights, workers=effort.workers, advance=conversion.advance)
    write_metadata(directory, files, common={"args": args, "checkpoint_version": 3.0, "iteration": 0})
    return open_as(directory, model)


def _origin(source: Weights, reference: Path | None) -> dict[str, Any]:
    """What `model.json` says of the source beside its name and hash: token ids, and where a checkpoint's own weights came from."""
    recorded = read_model_file(source.directory)[1] if (source.directory / MODEL).is_file() else {}
    before = {"origin": {key: value for key, value in recorded.items() if key != "token_ids"}} if recorded else {}
    return before | {"token_ids": _token_ids(source, reference)}


def _token_ids(weights: Weights, reference: Path | None) -> dict[str, Any]:
    """The special token ids that the source records, and over them those that the reference has."""
    token_ids: dict[str, Any] = {}
    if (weights.directory / MODEL).is_file():
        token_ids = dict(read_model_file(weights.directory)[1].get("token_ids", {}))
    for directory in (weights.directory if isinstance(weights, HuggingFaceModel) else None, reference):
        if directory and (directory / CONFIG).is_file():
            found = read_token_ids(directory)
            token_ids = dict.fromkeys(found) | token_ids | {key: value for key, value in found.items() if value is not None}
    return token_ids
