"""A Megatron checkpoint directory of ours: torch_dist files, and `model.json`, which says what model they are.

    model.json = {"format": 1, "model": the keys of ModelConfig, "source": where the weights came from}

A training checkpoint carries the same file, so an export needs nothing else. `source` is free-form; an export takes the
special token ids from its `token_ids` where no reference is given.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_poro.config.parse import Problems, build
from megatron_poro.config.schema import ModelConfig
from megatron_poro.config.validate import find_bad_numbers
from megatron_poro.conversion.files import read_json, write_json
from megatron_poro.conversion.table import DROPPED_FROM_MEGATRON, Piece, Shape, is_dropped, pieces
from megatron_poro.conversion.torch_dist import METADATA, CheckpointIndex, TorchDistWriter, read_checkpoint_index
from megatron_poro.conversion.weights import Advance, Weights
from megatron_poro.errors import ConversionError

MODEL = "model.json"
FORMAT = 1


@dataclass(frozen=True)
class MegatronModel:
    """An opened checkpoint: it holds all that the model needs; padding rows of the vocabulary are never read."""

    directory: Path
    model: ModelConfig
    index: CheckpointIndex

    def dtype(self, piece: Piece) -> torch.dtype:
        """Number type of a piece."""
        return self.index.tensors[piece.row.megatron].dtype

    def read(self, piece: Piece) -> tuple[torch.Tensor, ...]:
        """The piece's parts in Hugging Face's layout, from disk."""
        rows = slice(0, piece.merged_shape(self.model)[0])
        if not piece.row.stacked:
            return piece.split(self.index.read_tensor(piece.row.megatron, (rows,)), self.model)
        layer = slice(piece.layer, piece.layer + 1)
        return piece.split(self.index.read_tensor(piece.row.megatron, (layer, rows))[0], self.model)


def open_megatron(directory: Path) -> MegatronModel:
    """Open a checkpoint that has a `model.json`.

    Raises ConversionError for missing, unknown or misshapen tensors, and for damaged or hostile files.
    """
    model, _ = read_model_file(directory)
    return open_as(directory, model)


def open_as(directory: Path, model: ModelConfig) -> MegatronModel:
    """Open a checkpoint as the given model, whether or not it has a `model.json`; errors as `open_megatron`."""
    index = read_checkpoint_index(directory)
    needed = {piece.row.megatron: piece for piece in pieces(model)}
    for name, piece in needed.items():
        if name not in index.tensors:
            raise ConversionError(f"{directory / METADATA} lists no {name}; give a checkpoint that holds the whole model")
        _check_shape(directory, index.tensors[name].shape, piece, model=model)
    unknown = [name for name in index.tensors if name not in needed and not is_dropped(name, DROPPED_FROM_MEGATRON)]
    if unknown:
        raise ConversionError(f"{directory / METADATA} lists {', '.join(unknown[:3])}, which no Llama as in {MODEL} has")
    return MegatronModel(directory, model, index)


def write_megatron(directory: Path, weights: Weights, *, advance: Advance) -> None:
    """Write a model's weights as a checkpoint, without `model.json`; one piece is in memory at a time."""
    model = weights.model
    with TorchDistWriter(directory) as writer:
        for piece in pieces(model):
            chunk = piece.merge(weights.read(piece), model)
            offsets = (0,) * chunk.dim()
            if piece.row.stacked:
                chunk, offsets = chunk.unsqueeze(0), (piece.layer, *offsets)
            writer.write(piece.row.megatron, chunk, offsets=offsets, shape=piece.global_shape(model))
            advance(chunk.nbytes)


def write_model_file(directory: Path, model: ModelConfig, source: Mapping[str, Any]) -> None:
    """Write `model.json`."""
    write_json(directory / MODEL, {"format": FORMAT, "model": dataclasses.asdict(model), "source": dict(source)})


def read_model_file(directory: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The model and the source in `model.json`. Raises ConversionError when it is missing or does not parse."""
    path = directory / MODEL
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise ConversionError(f"{path} has format {content.get('format')!r}; this version reads {FORMAT}")
    problems = Problems()
    model = build(ModelConfig, content.get("model"), "model", problems)
    if model is not None:
        problems.extend(find_bad_numbers(model, "model"))
    source = content.get("source") or {}
    if model is None or problems or not isinstance(source, dict):
        raise ConversionError(f"{path}: {'; '.join(problems) or 'source is no object'}; copy it again")
    return model, source


def _check_shape(directory: Path, found: Shape, piece: Piece, *, model: ModelConfig) -> None:
    expected = piece.global_shape(model)
    padded = "vocab" in next(iter(piece.row.parts.values())) and found[1:] == expected[1:] and found[0] > expected[0]
    if found != expected and not padded:
        raise ConversionError(
            f"{directory / METADATA}: {piece.row.megatron} is {list(found)}, but {MODEL} implies {list(expected)}; correct {MODEL}"
        )
