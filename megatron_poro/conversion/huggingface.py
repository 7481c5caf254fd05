"""A Hugging Face Llama directory: read tensor by tensor, written shard by shard, never held whole in memory."""

import itertools
import json
import math
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_poro.config.schema import ModelConfig
from megatron_poro.conversion.files import flush_to_disk, plain_file, read_json, write_json
from megatron_poro.conversion.hf_config import CONFIG, read_config
from megatron_poro.conversion.table import DROPPED_FROM_HUGGINGFACE, DROPPED_IF_TIED, Piece, Shape, is_dropped, pieces
from megatron_poro.conversion.weights import Advance, Weights, tensor_bytes
from megatron_poro.errors import ConversionError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Number types that are converted, by their names in safetensors; anything else is quantised or not a weight."""

COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Files about text, which an export takes from its reference as they are."""


@dataclass(frozen=True)
class TensorFile:
    """Where a tensor lies and what it is."""

    path: Path
    shape: Shape
    dtype: torch.dtype


@dataclass(frozen=True)
class HuggingFaceModel:
    """An opened directory: its tensors are exactly those that the model needs."""

    directory: Path
    model: ModelConfig
    tensors: Mapping[str, TensorFile]

    def dtype(self, piece: Piece) -> torch.dtype:
        """Number type of a piece's parts."""
        return self.tensors[piece.names[0]].dtype

    def read(self, piece: Piece) -> tuple[torch.Tensor, ...]:
        """The parts of a piece, from disk."""
        return tuple(self._read_tensor(name) for name in piece.names)

    def _read_tensor(self, name: str) -> torch.Tensor:
        with _open(self.tensors[name].path) as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor


def open_huggingface(directory: Path) -> HuggingFaceModel:
    """Read config.json and the tensors' headers, and check them against each other; no tensor is read.

    Raises ConversionError for a missing, unexpected, misshapen or quantised tensor, and for a missing or damaged file.
    """
    model = read_config(directory)
    tensors = dict(_list_tensors(directory))
    dropped = DROPPED_FROM_HUGGINGFACE | (DROPPED_IF_TIED if model.tied_embeddings else {})
    kept = {name: tensor for name, tensor in tensors.items() if not is_dropped(name, dropped)}
    _check_tensors(directory, model, kept)
    if model.tied_embeddings:
        _check_tied(directory, tensors)
    return HuggingFaceModel(directory, model, kept)


def write_huggingface(directory: Path, weights: Weights, *, advance: Advance, shard_bytes: int = SHARD_BYTES) -> None:
    """Write safetensors of at most `shard_bytes` (or one tensor) each, with an index where there are several.

    A shard's header is known before its tensors, so they go to disk as they come.
    """
    shards = _plan_shards(weights, shard_bytes)
    tensors = (tensor for piece in pieces(weights.model) for tensor in weights.read(piece))
    names = _shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        with (directory / name).open("xb") as file:
            file.write(_header(shard))
            for tensor in itertools.islice(tensors, len(shard)):
                advance(file.write(tensor_bytes(tensor)))
            flush_to_disk(file)
    if len(shards) > 1:
        places = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        size = sum(entry.num_bytes for shard in shards for entry in shard)
        write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def copy_text_files(reference: Path, directory: Path) -> None:
    """Copy tokenizer, chat template and generation settings of `reference`, those it has."""
    for name in COPIED:
        if (reference / name).is_file():
            shutil.copyfile(reference / name, directory / name)


@dataclass(frozen=True)
class _Entry:
    """A tensor of a shard's header."""

    name: str
    shape: Shape
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _plan_shards(weights: Weights, shard_bytes: int) -> list[list[_Entry]]:
    shards: list[list[_Entry]] = [[]]
    filled = 0
    for piece in pieces(weights.model):
        for name, shape in zip(piece.names, piece.shapes(weights.model), strict=True):
            entry = _Entry(name, shape, weights.dtype(piece))
            if shards[-1] and filled + entry.num_bytes > shard_bytes:
                shards.append([])
                filled = 0
            shards[-1].append(entry)
            filled += entry.num_bytes
    return shards


def _shard_names(count: int) -> list[str]:
    return [SINGLE] if count == 1 else [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]


def _header(shard: Sequence[_Entry]) -> bytes:
    """The length and the JSON that open a safetensors file; spaces make the numbers start at a multiple of 8."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in shard:
        stop = start + entry.num_bytes
        header[entry.name] = {"dtype": names[entry.dtype], "shape": entry.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _list_tensors(directory: Path) -> Iterator[tuple[str, TensorFile]]:
    """Every tensor of the directory's files, from their headers."""
    if not (directory / INDEX).exists():
        yield from _list_file(plain_file(directory, SINGLE, named_by=CONFIG))
        return
    places = read_json(directory / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConversionError(f"{directory / INDEX} has no weight_map; copy it again")
    paths = {name: plain_file(directory, shard, named_by=INDEX) for name, shard in places.items()}
    for path in dict.fromkeys(paths.values()):
        found = dict(_list_file(path))
        promised = {name for name, place in paths.items() if place == path}
        if promised != set(found):
            raise ConversionError(f"{path} and {INDEX} disagree on {_some(promised ^ set(found))}; copy both again")
        yield from found.items()


def _list_file(path: Path) -> Iterator[tuple[str, TensorFile]]:
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            header = file.get_slice(name)
            dtype = header.get_dtype()
            if dtype not in DTYPES and not is_dropped(name, DROPPED_FROM_HUGGINGFACE):
                raise ConversionError(f"{path}: {name} holds {dtype}; only {', '.join(DTYPES)} is converted, no quantised model")
            yield name, TensorFile(path, tuple(header.get_shape()), DTYPES.get(dtype, torch.float32))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path} is damaged ({error}); copy it again") from None


def _check_tensors(directory: Path, model: ModelConfig, tensors: Mapping[str, TensorFile]) -> None:
    needed = {name: shape for piece in pieces(model) for name, shape in zip(piece.names, piece.shapes(model), strict=True)}
    if missing := set(needed) - set(tensors):
        raise ConversionError(f"{directory} lacks {_some(missing)}, which {CONFIG} implies; copy the missing files")
    if unknown := set(tensors) - set(needed):
        raise ConversionError(f"{directory} holds {_some(unknown)}, which no Llama has; convert the Llama it was made from")
    for name, shape in needed.items():
        if tensors[name].shape != shape:
            raise ConversionError(
                f"{tensors[name].path}: {name} is {list(tensors[name].shape)}, but {CONFIG} implies {list(shape)}; correct {CONFIG}"
            )
    _check_types(directory, model, tensors)


def _check_tied(directory: Path, tensors: Mapping[str, TensorFile]) -> None:
    """A tied output layer may be stored too, but only as the embedding again: transformers does not tie two that differ."""
    embedding, output = "model.embed_tokens.weight", "lm_head.weight"
    if output not in tensors:
        return
    both = []
    for name in (embedding, output):
        with _open(tensors[name].path) as file:
            both.append(file.get_tensor(name))
    if not torch.equal(*both):
        raise ConversionError(
            f"{directory}: {output} differs from {embedding}, though {CONFIG} says tie_word_embeddings; "
            "set that to false if both are meant"
        )


def _check_types(directory: Path, model: ModelConfig, tensors: Mapping[str, TensorFile]) -> None:
    """All that goes into one Megatron tensor must have one number type: it could not be stored unchanged otherwise."""
    types: dict[str, torch.dtype] = {}
    for piece in pieces(model):
        for name in piece.names:
            expected = types.setdefault(piece.row.megatron, tensors[name].dtype)
            if tensors[name].dtype != expected:
                raise ConversionError(
                    f"{directory}: {name} is {tensors[name].dtype}, but others of {piece.row.megatron} are {expected}; "
                    "save the model in one number type"
                )


def _some(names: Set[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first
