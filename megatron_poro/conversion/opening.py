"""Open a model directory of whatever format it is: Hugging Face's, ours, or one of Megatron-LM's two."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_poro.config.schema import ModelConfig
from megatron_poro.conversion.huggingface import is_huggingface, open_huggingface
from megatron_poro.conversion.megatron import MODEL, open_as, open_megatron
from megatron_poro.conversion.megatron_args import read_args
from megatron_poro.conversion.megatron_torch import is_torch, open_torch, whole_model
from megatron_poro.conversion.safe_pickle import fields
from megatron_poro.conversion.torch_archive import read_archive
from megatron_poro.conversion.torch_dist import COMMON, is_torch_dist
from megatron_poro.conversion.weights import Weights
from megatron_poro.errors import ConversionError

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"


def open_weights(directory: Path, *, like: ModelConfig | None = None, vocab_size: int | None = None) -> Weights:
    """Open a directory. Megatron-LM's checkpoints do not know their vocabulary, only its padded size, so they need `vocab_size`
    or a model `like` them; one without arguments needs `like` for everything.

    Raises ConversionError for a directory of no known format, or one that is no complete Llama.
    """
    directory = resolve(directory)
    weights = _open_known(directory)
    if weights is not None:
        if vocab_size not in (None, weights.model.vocab_size):
            raise ConversionError(f"{directory} has {weights.model.vocab_size} tokens, not {vocab_size}; leave --vocab-size out")
        return weights
    if is_torch_dist(directory):
        return open_as(directory, _model_of(directory, _common_args(directory), like, vocab_size))
    if is_torch(directory):
        checkpoint = open_torch(directory)
        return whole_model(checkpoint, _model_of(directory, checkpoint.args, like, vocab_size))
    raise ConversionError(_why_not(directory))


def _open_known(directory: Path) -> Weights | None:
    """Open a directory that says all of its model itself; None when it is none of those."""
    if (directory / MODEL).is_file():
        return open_megatron(directory)
    return open_huggingface(directory) if is_huggingface(directory) else None


def _why_not(directory: Path) -> str:
    if not directory.exists():
        return f"{directory} does not exist; give a model directory, a model of the Hub after it was downloaded"
    if not directory.is_dir():
        return f"{directory} is a file; give its folder"
    runs = sorted((*directory.glob("step_*"), *directory.glob("checkpoints/step_*")))
    if runs:
        return f"{directory} holds {len(runs)} checkpoints; give one of them, such as {runs[-1]}"
    return f"{directory} is no model directory: it has no config.json, {MODEL}, .metadata, {TRACKER} or mp_rank_ folders"


def knows_its_vocabulary(directory: Path) -> bool:
    """Whether a directory says how many tokens its vocabulary has without padding: all do but Megatron-LM's."""
    directory = resolve(directory)
    return (directory / MODEL).is_file() or is_huggingface(directory)


def padded_vocabulary(directory: Path) -> int:
    """The rows that Megatron-LM's arguments give the embedding. Raises ConversionError where they say nothing."""
    directory = resolve(directory)
    if not is_torch_dist(directory) and not is_torch(directory):
        raise ConversionError(_why_not(directory))
    args = _common_args(directory) if is_torch_dist(directory) else open_torch(directory).args
    rows = fields(args).get("padded_vocab_size")
    if not isinstance(rows, int):
        raise ConversionError(f"{directory} does not say how large its vocabulary is; give --vocab-size")
    return rows


def resolve(directory: Path) -> Path:
    """The iteration that Megatron-LM's tracker file names; the directory itself where there is none."""
    if not (directory / TRACKER).is_file():
        return directory
    named = (directory / TRACKER).read_text(encoding="utf-8", errors="replace").strip()[:40]
    if named != RELEASE and not named.isdecimal():
        raise ConversionError(f"{directory / TRACKER} names no iteration but {named!r}; give the directory of one")
    found = directory / (RELEASE if named == RELEASE else f"iter_{int(named):07d}")
    if not found.is_dir():
        raise ConversionError(f"{found} is missing, though {TRACKER} names it; give the directory of another iteration")
    return found


def _common_args(directory: Path) -> Any:
    """The arguments in a distributed checkpoint's `common.pt`, None where it has none."""
    if not (directory / COMMON).is_file():
        return None
    common = read_archive(directory / COMMON)
    return common.get("args") if isinstance(common, dict) else None


def _model_of(directory: Path, args: Any, like: ModelConfig | None, vocab_size: int | None) -> ModelConfig:
    if args is None and like is None:
        raise ConversionError(f"{directory} carries no arguments that say what model it is; give --reference HF_DIR")
    if args is None and like is not None:
        return like
    size = like.vocab_size if like is not None else vocab_size
    if size is None:
        raise ConversionError(
            f"{directory} knows its vocabulary only with padding rows; give --reference HF_DIR, the model that it started from, "
            "or --vocab-size N"
        )
    _check_padding(directory, args, size)
    model = read_args(args, vocab_size=size, where=directory)
    return model if like is None else replace(model, max_position_embeddings=like.max_position_embeddings)


def _check_padding(directory: Path, args: Any, vocab_size: int) -> None:
    """Raise ConversionError unless Megatron-LM would have padded this vocabulary to the size that the arguments give."""
    given = fields(args)
    rows, tensor = given.get("padded_vocab_size"), given.get("tensor_model_parallel_size") or 1
    multiple = (given.get("make_vocab_size_divisible_by") or 128) * tensor
    if isinstance(rows, int) and not rows - multiple < vocab_size <= rows:
        raise ConversionError(
            f"{directory} has {rows} rows of vocabulary, padded to a multiple of {multiple}; {vocab_size} tokens would not have "
            "that many; give the size of the vocabulary that it was trained with"
        )
