"""Megatron's distributed checkpoint format (torch_dist) as files, without process group, GPU or megatron-core.

The directory holds `.metadata` (a pickle that says where each chunk of each tensor lies), `*.distcp` (chunks, each as
`torch.save` wrote it), `common.pt` and `metadata.json`. Names and shapes are global, so one checkpoint loads in any
parallel layout. Nothing is held but one chunk a thread; the reader knows only the classes a genuine `.metadata` names, so
nothing in it can run code.
"""

import json
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp

from megatron_poro.conversion.arrays import Box, Region, Shape, StoredArray, as_bytes, flat_bytes
from megatron_poro.conversion.files import OutFile, plain_file
from megatron_poro.conversion.safe_pickle import Inert, Kind, UnsafeGlobalError, fields, read_pickle
from megatron_poro.conversion.torch_archive import SIZE, PendingTensor, most_pickle_bytes, read_archive, write_archive
from megatron_poro.errors import ConversionError

METADATA = ".metadata"
COMMON = "common.pt"
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}

_RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata TensorStorageMetadata BytesStorageMetadata TensorProperties ChunkStorageMetadata MetadataIndex "
        "StorageMeta _MEM_FORMAT_ENCODING"
    ),
    "torch.distributed.checkpoint.planner": "SavePlan WriteItem WriteItemType TensorWriteData BytesIOWriteData",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.serialization": "_get_layout",
    "pathlib": "PosixPath",
    "pathlib._local": "PosixPath",
}
"""All that `.metadata` may name beside sizes and number types, by module: records of torch.distributed.checkpoint and a path."""

_DTYPES = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 bool"
_KNOWN: dict[Kind, Any] = SIZE | {Kind("torch", name): getattr(torch, name) for name in _DTYPES.split()}


@dataclass(frozen=True)
class StoredChunk:
    """A chunk as `.metadata` lists it: a box of a tensor, and the bytes of a file where `torch.save` wrote it."""

    offsets: Shape
    sizes: Shape
    file: str
    start: int
    num_bytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as `.metadata` lists it."""

    shape: Shape
    dtype: torch.dtype
    chunks: tuple[StoredChunk, ...]


@dataclass(frozen=True)
class CheckpointIndex:
    """What a checkpoint holds: tensors by name, and the names of its opaque objects, which are never opened."""

    directory: Path
    tensors: dict[str, StoredTensor]
    objects: tuple[str, ...]

    def locate(self, name: str) -> StoredArray:
        """Where the numbers of a tensor lie. Raises ConversionError when its chunks are damaged or do not fill it."""
        stored = self.tensors[name]
        boxes = tuple(_locate_chunk(self.directory, name, stored.dtype, chunk=chunk) for chunk in stored.chunks)
        array = StoredArray(name, stored.shape, stored.dtype, boxes)
        array.check_cover()
        return array

    def read_tensor(self, name: str, region: Region = ()) -> torch.Tensor:
        """`tensor[region]`; bounds are plain, axes left out are whole."""
        return self.locate(name).read(region)


def is_torch_dist(directory: Path) -> bool:
    """Whether a directory is a distributed checkpoint, going by its `.metadata`."""
    return (directory / METADATA).is_file()


def read_checkpoint_index(directory: Path) -> CheckpointIndex:
    """Read `.metadata` without trusting it.

    Raises ConversionError when it is missing or damaged, names anything but a checkpoint's records, or points outside
    the folder or beyond a file.
    """
    metadata = _load_metadata(directory / METADATA)
    try:
        return _build_index(directory, metadata)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ConversionError(f"{directory / METADATA} is damaged ({error!r}); copy the checkpoint again") from None


def check_metadata_is_safe(directory: Path) -> None:
    """Raise ConversionError unless `.metadata` holds only a checkpoint's records and points only into the folder.

    torch and megatron-core open `.metadata` with plain pickle, which runs whatever it names: call this before they do.
    """
    read_checkpoint_index(directory)


@dataclass(frozen=True)
class Chunk:
    """A box of the tensor `name` of global shape `shape`."""

    name: str
    shape: Shape
    offsets: Shape
    sizes: Shape
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.sizes) * self.dtype.itemsize


@dataclass(frozen=True)
class PendingChunk(Chunk):
    """A chunk to be written, whose numbers `fill` writes into a tensor when their turn is there."""

    fill: Callable[[torch.Tensor], None]

    def numbers(self) -> torch.Tensor:
        """The numbers, made now."""
        numbers = torch.empty(self.sizes, dtype=self.dtype)
        self.fill(numbers)
        return numbers


@dataclass(frozen=True)
class HeldChunk(Chunk):
    """A chunk to be written, whose numbers lie in host memory already; `aliases` are further tensors that the same bytes serve."""

    held: torch.Tensor
    aliases: tuple[str, ...] = ()

    def numbers(self) -> torch.Tensor:
        """The numbers."""
        return self.held


@dataclass(frozen=True)
class WrittenFile:
    """A file of chunks that was written: what `.metadata` and `files.json` need to know of it. `sha256` is empty if not hashed."""

    name: str
    num_bytes: int
    sha256: str
    places: tuple[tuple[Chunk, int, int], ...]


def write_chunks(
    path: Path, chunks: Sequence[PendingChunk | HeldChunk], *, hashed: bool, done: Callable[[Chunk], None] = lambda chunk: None
) -> WrittenFile:
    """Write chunks as a file of a checkpoint, one of them made at a time; `done` is called after each."""
    places: list[tuple[Chunk, int, int]] = []
    with OutFile(path, hashed=hashed) as file:
        for chunk in chunks:
            start, blocks = file.size, [flat_bytes(as_bytes(chunk.numbers()))]
            write_archive(file, PendingTensor(chunk.sizes, chunk.dtype, lambda blocks=blocks: blocks))  # type: ignore[misc]
            names = (chunk.name, *(chunk.aliases if isinstance(chunk, HeldChunk) else ()))
            places += [
                (Chunk(name, chunk.shape, chunk.offsets, chunk.sizes, chunk.dtype), start, file.size - start) for name in names
            ]
            done(chunk)
    return WrittenFile(path.name, file.size, file.sha256, tuple(places))


def write_metadata(directory: Path, files: Sequence[WrittenFile], *, common: Any = None) -> None:
    """Write `.metadata` over the given files, `metadata.json`, and `common.pt` with `common` (nothing by default)."""
    stored: dict[str, dcp.TensorStorageMetadata] = {}
    places: dict[dcp.MetadataIndex, Any] = {}
    for file in files:
        for chunk, start, num_bytes in file.places:
            properties = dcp.TensorProperties(dtype=chunk.dtype)
            listed = stored.setdefault(chunk.name, dcp.TensorStorageMetadata(properties, torch.Size(chunk.shape), []))
            listed.chunks.append(dcp.ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)))
            index = dcp.MetadataIndex(chunk.name, torch.Size(chunk.offsets))
            places[index] = filesystem._StorageInfo(file.name, start, num_bytes)
    (directory / "metadata.json").write_text(json.dumps(FORMAT))
    torch.save({} if common is None else common, directory / COMMON)
    with OutFile(directory / METADATA) as out:
        out.write(pickle.dumps(dcp.Metadata(state_dict_metadata=dict(stored), storage_data=places)))


def _load_metadata(path: Path) -> Inert:
    try:
        num_bytes, others = path.stat().st_size, sum(other.stat().st_size for other in path.parent.glob("*.distcp"))
        if num_bytes > most_pickle_bytes(others):
            raise ValueError(f"it has {num_bytes} bytes, the tensors that it lists {others}")
        metadata = read_pickle(
            path.read_bytes(), known=_KNOWN, allowed=lambda kind: kind.name in _RECORDS.get(kind.module, "").split()
        )
    except UnsafeGlobalError as error:
        raise ConversionError(f"refuses to load {error} from {path}; no checkpoint needs it, so do not trust this one") from None
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}; give the directory of a torch_dist checkpoint") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ConversionError(f"{path} is damaged ({error!r}); copy the checkpoint again") from None
    if not isinstance(metadata, Inert) or metadata.kind.name != "Metadata":
        raise ConversionError(f"{path} is damaged (it holds no metadata); copy the checkpoint again")
    return metadata


def _is_record(kind: Kind) -> bool:
    return kind.name in _RECORDS.get(kind.module, "").split()


_Place = dict[str, Any]
"""`relative_path`, `offset` and `length` of what lies in a file."""


def _build_index(directory: Path, metadata: Inert) -> CheckpointIndex:
    content = fields(metadata)
    places: dict[tuple[str, Shape | None], _Place] = {}
    for index, place in content["storage_data"].items():
        at = fields(index)
        offset = at.get("offset")
        places[at["fqn"], None if offset is None else _shape(offset)] = fields(place)
    _check_places(directory, places)
    tensors, objects = {}, []
    for name, stored in content["state_dict_metadata"].items():
        if not isinstance(name, str):
            raise TypeError("a tensor without a name")
        if stored.kind.name == "BytesStorageMetadata":
            objects.append(name)
        else:
            tensors[name] = _build_tensor(name, fields(stored), places)
    return CheckpointIndex(directory, tensors, tuple(objects))


def _build_tensor(name: str, stored: dict[str, Any], places: dict[tuple[str, Shape | None], _Place]) -> StoredTensor:
    shape, chunks = _shape(stored["size"]), []
    for chunk in map(fields, stored["chunks"]):
        offsets, sizes = _shape(chunk["offsets"]), _shape(chunk["sizes"])
        place = places[name, offsets]
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise ValueError(f"{name[:80]} and its chunks have different numbers of axes")
        chunks.append(StoredChunk(offsets, sizes, place["relative_path"], place["offset"], place["length"]))
    return StoredTensor(shape, _dtype(stored["properties"]), tuple(chunks))


def _check_places(directory: Path, places: dict[tuple[str, Shape | None], _Place]) -> None:
    file_bytes: dict[str, int] = {}
    for (name, _), place in places.items():
        file, start, num_bytes = place["relative_path"], place["offset"], place["length"]
        if file not in file_bytes:
            file_bytes[file] = plain_file(directory, file, named_by=METADATA).stat().st_size
        if place.get("transform_descriptors"):
            raise ConversionError(f"{directory / file}: {name} is stored transformed; save it without transforms")
        if type(start) is not int or type(num_bytes) is not int:
            raise TypeError("a place that is no number")
        if start < 0 or num_bytes < 0 or start + num_bytes > file_bytes[file]:
            raise ConversionError(
                f"{directory / file} has {file_bytes[file]} bytes, but {METADATA} places {name} at "
                f"{start} to {start + num_bytes}; copy the checkpoint again"
            )


def _shape(sizes: Any) -> Shape:
    if type(sizes) is not tuple or len(sizes) > 8 or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("a shape that is none")
    return sizes


def _dtype(properties: Any) -> torch.dtype:
    """The number type in a tensor's properties, which are pickled as a tuple that begins with it."""
    dtype = properties.state[0] if isinstance(properties.state, tuple) else fields(properties).get("dtype")
    if not isinstance(dtype, torch.dtype):
        raise TypeError("a number type that is none")
    return dtype


def _locate_chunk(directory: Path, name: str, dtype: torch.dtype, *, chunk: StoredChunk) -> Box:
    path = directory / chunk.file
    try:
        array = read_archive(path, start=chunk.start, num_bytes=chunk.num_bytes)
    except ConversionError as error:
        raise ConversionError(f"{name} at {chunk.start}: {error}") from None
    if not isinstance(array, StoredArray) or not array.boxes or (array.shape, array.dtype) != (chunk.sizes, dtype):
        raise ConversionError(f"{path}: {name} is not what {METADATA} says; copy the checkpoint again")
    return Box(chunk.offsets, chunk.sizes, path, array.boxes[0].start, array.boxes[0].record)
