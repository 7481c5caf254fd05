"""A Megatron checkpoint directory of ours: torch_dist files, and `model.json`, which says what model they are.

    model.json = {"format": 1, "model": the keys of ModelConfig, "source": where the weights came from}

A training checkpoint carries the same file, so an export needs nothing else. `source` is free-form; an export takes the
special token ids from its `token_ids` where no reference is given.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_indexing.progress import Advance
from megatron_poro.config.parse import Problems, build
from megatron_poro.config.schema import ModelConfig
from megatron_poro.config.validate import find_bad_numbers
from megatron_poro.conversion.arrays import StoredArray, stack
from megatron_poro.conversion.files import read_json, write_json
from megatron_poro.conversion.safetensors_file import DTYPES
from megatron_poro.conversion.table import DROPPED_FROM_MEGATRON, Piece, is_dropped, pieces
from megatron_poro.conversion.torch_dist import METADATA, Chunk, PendingChunk, WrittenFile, read_checkpoint_index, write_chunks
from megatron_poro.conversion.weights import MegatronWeights, Weights, block_rows, read_merged_into
from megatron_poro.conversion.work import Tell, run_jobs
from megatron_poro.errors import ConversionError

MODEL = "model.json"
FORMAT = 1
CHUNK_BYTES = 2**26
"""A chunk is in memory while it is written, and while a rank that needs some of it loads it."""
FILE_BYTES = 2**31


def open_megatron(directory: Path) -> MegatronWeights:
    """Open a checkpoint that has a `model.json`.

    Raises ConversionError for missing, unknown or misshapen tensors, and for damaged or hostile files.
    """
    model, _ = read_model_file(directory)
    return open_as(directory, model)


def open_as(directory: Path, model: ModelConfig) -> MegatronWeights:
    """Open a distributed checkpoint as the given model, whether or not it has a `model.json`; errors as `open_megatron`.

    Layers may be stacked in one tensor, as they are by default, or have each their own, numbered in the name.
    """
    index = read_checkpoint_index(directory)
    needed = {piece.row.megatron: piece for piece in pieces(model)}
    arrays, used = {}, set()
    for name, piece in needed.items():
        names = [name] if name in index.tensors else _layer_names(name, model) if piece.row.stacked else [name]
        if missing := [each for each in names if each not in index.tensors]:
            wanted = name if len(missing) == len(names) else missing[0]
            raise ConversionError(f"{directory / METADATA} lists no {wanted}; give a checkpoint that holds the whole model")
        arrays[name] = index.locate(name) if names == [name] else stack(name, [index.locate(each) for each in names])
        check_array(directory, arrays[name], piece, model=model)
        used |= set(names)
    unknown = [name for name in index.tensors if name not in used and not is_dropped(name, DROPPED_FROM_MEGATRON)]
    if unknown:
        raise ConversionError(f"{directory / METADATA} lists {', '.join(unknown[:3])}, which no Llama as in {MODEL} has")
    return MegatronWeights(directory, model, arrays)


def _layer_names(name: str, model: ModelConfig) -> list[str]:
    return [name.replace(".layers.", f".layers.{layer}.") for layer in range(model.num_layers)]


def write_megatron(directory: Path, weights: Weights, *, hashed: bool = False, workers: int, advance: Advance) -> list[WrittenFile]:
    """Write a model's weights as files of chunks, `workers` at a time; `write_metadata` makes a checkpoint of them."""
    jobs = [_FileJob(directory, number, chunks, hashed) for number, chunks in enumerate(_plan_files(weights))]
    return run_jobs(jobs, workers=workers, advance=advance)


@dataclass(frozen=True)
class _FileJob:
    """Writes one file of chunks."""

    directory: Path
    number: int
    chunks: list[PendingChunk]
    hashed: bool

    def __call__(self, tell: Tell) -> WrittenFile:
        def done(chunk: Chunk) -> None:
            tell(chunk.num_bytes, chunk.name)

        return write_chunks(self.directory / f"__0_{self.number}.distcp", self.chunks, hashed=self.hashed, done=done)


@dataclass(frozen=True)
class _Fill:
    """Puts rows of a piece, in Megatron's layout, into a chunk."""

    weights: Weights
    piece: Piece
    rows: slice

    def __call__(self, out: torch.Tensor) -> None:
        out = out[0] if self.piece.row.stacked else out
        read_merged_into(out, self.weights, self.piece, (self.rows, *(slice(0, size) for size in out.shape[1:])))


def _plan_files(weights: Weights) -> Iterator[list[PendingChunk]]:
    planned: list[PendingChunk] = []
    for piece in pieces(weights.model):
        for chunk in _plan_chunks(weights, piece):
            if planned and sum(each.num_bytes for each in planned) + chunk.num_bytes > FILE_BYTES:
                yield planned
                planned = []
            planned.append(chunk)
    yield planned


def _plan_chunks(weights: Weights, piece: Piece) -> Iterator[PendingChunk]:
    """A piece, cut along its rows."""
    model, dtype = weights.model, weights.dtype(piece)
    shape, whole, stacked = piece.merged_shape(model), piece.global_shape(model), piece.row.stacked
    step = block_rows(shape, dtype, CHUNK_BYTES)
    for first in range(0, shape[0], step):
        rows = slice(first, min(first + step, shape[0]))
        offsets = ((piece.layer,) if stacked else ()) + (first,) + (0,) * (len(shape) - 1)
        sizes = ((1,) if stacked else ()) + (rows.stop - first, *shape[1:])
        yield PendingChunk(piece.row.megatron, whole, offsets, sizes, dtype, _Fill(weights, piece, rows))


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


def check_array(directory: Path, array: StoredArray, piece: Piece, *, model: ModelConfig) -> None:
    """Raise ConversionError when a tensor is not of the shape that the model implies, or of a number type that is not converted.

    The vocabulary may have padding rows.
    """
    expected, found = piece.global_shape(model), array.shape
    if array.dtype not in DTYPES.values():
        raise ConversionError(f"{directory}: {piece.row.megatron} holds {array.dtype}; only {', '.join(DTYPES)} is converted")
    padded = "vocab" in next(iter(piece.row.parts.values())) and found[1:] == expected[1:] and found[0] > expected[0]
    if found != expected and not padded:
        raise ConversionError(
            f"{directory}: {piece.row.megatron} is {list(found)}, but the model implies {list(expected)}; correct its config"
        )
