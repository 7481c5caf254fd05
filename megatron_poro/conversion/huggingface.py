"""A Hugging Face Llama directory: its headers checked against config.json, written shard by shard, never held in memory."""

import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_indexing.progress import Advance
from megatron_poro.config.schema import ModelConfig
from megatron_poro.conversion.arrays import Record, Region, StoredArray
from megatron_poro.conversion.files import OutFile, plain_file, read_json, write_json
from megatron_poro.conversion.hf_config import CONFIG, read_config
from megatron_poro.conversion.safetensors_file import DTYPES, Entry, Listed, build_header, read_header
from megatron_poro.conversion.table import DROPPED_FROM_HUGGINGFACE, DROPPED_IF_TIED, Piece, is_dropped, pieces
from megatron_poro.conversion.torch_archive import read_archive
from megatron_poro.conversion.weights import Weights, part_blocks
from megatron_poro.conversion.work import Tell, run_jobs
from megatron_poro.errors import ConversionError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
OLD_SINGLE = "pytorch_model.bin"
OLD_INDEX = "pytorch_model.bin.index.json"
SHARD_BYTES = 5 * 10**9

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
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
)
"""Files about text, and those that must go with the weights, which an export takes from its reference as they are."""


@dataclass(frozen=True)
class HuggingFaceModel:
    """An opened directory: its tensors are exactly those that the model needs."""

    directory: Path
    model: ModelConfig
    tensors: Mapping[str, StoredArray]

    def dtype(self, piece: Piece) -> torch.dtype:
        """Number type of a piece's parts."""
        return self.tensors[piece.names[0]].dtype

    def read_into(self, out: torch.Tensor, piece: Piece, part: int, region: Region) -> None:
        """Fill `out` with a region of a part."""
        self.tensors[piece.names[part]].read_into(out, region)

    def records(self) -> Iterator[Record]:
        """What the tensors lie in; safetensors has no checksums."""
        yield from dict.fromkeys(record for tensor in self.tensors.values() for record in tensor.records())


def is_huggingface(directory: Path) -> bool:
    """Whether a directory is one of Hugging Face's, going by the files that it has."""
    return (directory / CONFIG).is_file()


def open_huggingface(directory: Path) -> HuggingFaceModel:
    """Read config.json and the tensors' headers, and check them against each other; no tensor is read but a tied copy.

    Raises ConversionError for a missing, unexpected, misshapen or quantised tensor, and for a missing or damaged file.
    """
    model = read_config(directory)
    tensors = _list_tensors(directory)
    dropped = DROPPED_FROM_HUGGINGFACE | (DROPPED_IF_TIED if model.tied_embeddings else {})
    kept = {name: tensor for name, tensor in tensors.items() if not is_dropped(name, dropped)}
    _check_tensors(directory, model, kept)
    if model.tied_embeddings:
        _check_tied(directory, tensors)
    return HuggingFaceModel(directory, model, kept)


def write_huggingface(directory: Path, weights: Weights, *, workers: int, advance: Advance, shard_bytes: int = SHARD_BYTES) -> None:
    """Write safetensors of at most `shard_bytes` (or one tensor) each, with an index where there are several.

    A shard's header is known before its tensors, so they go to disk as they come. `workers` shards are written at a time.
    """
    shards = _plan_shards(weights, shard_bytes)
    names = _shard_names(len(shards))
    jobs = [_ShardJob(directory / name, weights, shard) for name, shard in zip(names, shards, strict=True)]
    run_jobs(jobs, workers=workers, advance=advance)
    if len(shards) > 1:
        entries = [(name, entry) for name, shard in zip(names, shards, strict=True) for _, _, entry in shard]
        size = sum(entry.num_bytes for _, entry in entries)
        write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": {e.name: name for name, e in entries}})


def copy_text_files(reference: Path, directory: Path) -> list[str]:
    """Copy tokenizer, chat template, generation settings and licence of `reference`, those it has, and return their names."""
    found = [name for name in COPIED if (reference / name).is_file()]
    for name in found:
        shutil.copyfile(reference / name, directory / name)
    return found


_Planned = tuple[Piece, int, Entry]


@dataclass(frozen=True)
class _ShardJob:
    """Writes one shard."""

    path: Path
    weights: Weights
    planned: Sequence[_Planned]

    def __call__(self, tell: Tell) -> None:
        with OutFile(self.path) as file:
            file.write(build_header([entry for _, _, entry in self.planned]))
            for piece, part, entry in self.planned:
                for block in part_blocks(self.weights, piece, part):
                    file.write(block)
                    tell(len(block), entry.name)


def _plan_shards(weights: Weights, shard_bytes: int) -> list[list[_Planned]]:
    shards: list[list[_Planned]] = [[]]
    filled = 0
    for piece in pieces(weights.model):
        for part, (name, shape) in enumerate(zip(piece.names, piece.shapes(weights.model), strict=True)):
            entry = Entry(name, shape, weights.dtype(piece))
            if shards[-1] and filled + entry.num_bytes > shard_bytes:
                shards.append([])
                filled = 0
            shards[-1].append((piece, part, entry))
            filled += entry.num_bytes
    return shards


def _shard_names(count: int) -> list[str]:
    return [SINGLE] if count == 1 else [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]


def _list_tensors(directory: Path) -> dict[str, StoredArray]:
    """Every tensor of the directory's files, from their headers."""
    for single, index, list_file in ((SINGLE, INDEX, _list_safetensors), (OLD_SINGLE, OLD_INDEX, _list_archive)):
        if (directory / single).exists():  # before the index, as transformers looks for them
            return list_file(plain_file(directory, single, named_by=CONFIG))
        if (directory / index).exists():
            return _list_shards(directory, index, list_file)
    raise ConversionError(f"{directory / SINGLE} is missing, and so are {INDEX}, {OLD_SINGLE} and {OLD_INDEX}; copy the weights")


def _list_shards(directory: Path, index: str, list_file: Any) -> dict[str, StoredArray]:
    places = read_json(directory / index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConversionError(f"{directory / index} has no weight_map; copy it again")
    paths = {name: plain_file(directory, shard, named_by=index) for name, shard in places.items()}
    tensors: dict[str, StoredArray] = {}
    for path in dict.fromkeys(paths.values()):
        found = list_file(path)
        promised = {name for name, place in paths.items() if place == path}
        if promised != set(found):
            raise ConversionError(f"{path} and {index} disagree on {_some(promised ^ set(found))}; copy both again")
        tensors |= found
    return tensors


def _list_safetensors(path: Path) -> dict[str, StoredArray]:
    return {name: _convertible(path, name, listed) for name, listed in read_header(path).items()}


def _convertible(path: Path, name: str, listed: Listed) -> StoredArray:
    if listed.array is not None:
        return listed.array
    if is_dropped(name, DROPPED_FROM_HUGGINGFACE):
        return StoredArray(name, (), torch.float32, ())
    raise ConversionError(f"{path}: {name} holds {listed.dtype}; only {', '.join(DTYPES)} is converted, no quantised model")


def _list_archive(path: Path) -> dict[str, StoredArray]:
    """The tensors of a `pytorch_model.bin`, which `torch.save` wrote."""
    content = read_archive(path)
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(isinstance(tensor, StoredArray) for tensor in content.values()):
        raise ConversionError(f"{path} holds no dictionary of tensors; give the weights of a model")
    arrays = {str(name): replace(tensor, name=str(name)) for name, tensor in content.items()}
    for name, tensor in arrays.items():
        if not is_dropped(name, DROPPED_FROM_HUGGINGFACE) and (tensor.dtype not in DTYPES.values() or not tensor.boxes):
            raise ConversionError(f"{path}: {name} holds {tensor.dtype}, or not row by row; only {', '.join(DTYPES)} is converted")
    return arrays


def _check_tensors(directory: Path, model: ModelConfig, tensors: Mapping[str, StoredArray]) -> None:
    needed = {name: shape for piece in pieces(model) for name, shape in zip(piece.names, piece.shapes(model), strict=True)}
    if missing := set(needed) - set(tensors):
        raise ConversionError(f"{directory} lacks {_some(missing)}, which {CONFIG} implies; copy the missing files")
    if unknown := set(tensors) - set(needed):
        raise ConversionError(f"{directory} holds {_some(unknown)}, which no Llama has; convert the Llama it was made from")
    for name, shape in needed.items():
        if tensors[name].shape != shape:
            raise ConversionError(
                f"{directory}: {name} is {list(tensors[name].shape)}, but {CONFIG} implies {list(shape)}; correct {CONFIG}"
            )
    _check_types(directory, model, tensors)


def _check_tied(directory: Path, tensors: Mapping[str, StoredArray]) -> None:
    """A tied output layer may be stored too, but only as the embedding again: transformers does not tie two that differ."""
    embedding, output = tensors["model.embed_tokens.weight"], tensors.get("lm_head.weight")
    if output is not None and not same_numbers(embedding, output):
        raise ConversionError(
            f"{directory}: lm_head.weight differs from model.embed_tokens.weight, though {CONFIG} says tie_word_embeddings; "
            "set that to false if both are meant"
        )


def same_numbers(one: StoredArray, other: StoredArray, *, num_rows: int | None = None) -> bool:
    """Whether two arrays are bit for bit the same, or their first `num_rows` rows are; 4,096 rows are in memory at a time."""
    shapes = [(array.shape if num_rows is None else (num_rows, *array.shape[1:]), array.dtype) for array in (one, other)]
    if shapes[0] != shapes[1]:
        return False
    rows = shapes[0][0][0]
    spans = [(slice(first, min(first + 4096, rows)),) for first in range(0, rows, 4096)]
    return all(torch.equal(*(array.read(span).view(torch.uint8) for array in (one, other))) for span in spans)


def _check_types(directory: Path, model: ModelConfig, tensors: Mapping[str, StoredArray]) -> None:
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
