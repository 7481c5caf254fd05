"""Megatron's distributed checkpoint format (torch_dist) as files, without process group, GPU or megatron-core.

The directory holds `.metadata` (a pickle that says where each chunk of each tensor lies), `*.distcp` (chunks, each as
`torch.save` wrote it), `common.pt` and `metadata.json`. Names and shapes are global, so one checkpoint loads in any
parallel layout. Nothing is held but one chunk a thread; the reader knows only the classes a genuine `.metadata` names, so
nothing in it can run code.
"""

import io
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
from megatron_poro.conversion.torch_archive import PendingTensor, UnsafeGlobalError, read_archive, refuse_memo_bombs, write_archive
from megatron_poro.errors import ConversionError

METADATA = ".metadata"
COMMON = "common.pt"
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}

SAFE_GLOBALS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata TensorStorageMetadata BytesStorageMetadata TensorProperties ChunkStorageMetadata MetadataIndex "
        "StorageMeta _MEM_FORMAT_ENCODING"
    ),
    "torch.distributed.checkpoint.planner": "SavePlan WriteItem WriteItemType TensorWriteData BytesIOWriteData",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.serialization": "_get_layout",
    "torch": "Size float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 bool",
    "pathlib": "PosixPath",
    "pathlib._local": "PosixPath",
}
"""All that `.metadata` may name, by module: records of torch.distributed.checkpoint, sizes, number types and a path."""


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
    except (AttributeError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise ConversionError(f"{directory / METADATA} is damaged ({error!r}); copy the checkpoint again") from None


def check_metadata_is_safe(directory: Path) -> None:
    """Raise ConversionError unless `.metadata` holds only a checkpoint's records and points only into the folder.

    torch and megatron-core open `.metadata` with plain pickle, which runs whatever it names: call this before they do.
    """
    read_checkpoint_index(directory)


@dataclass(frozen=True)
class PendingChunk:
    """A chunk to be written: a box of the tensor `name` of global shape `shape`, whose numbers `fill` writes into a tensor."""

    name: str
    shape: Shape
    offsets: Shape
    sizes: Shape
    dtype: torch.dtype
    fill: Callable[[torch.Tensor], None]

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.sizes) * self.dtype.itemsize


@dataclass(frozen=True)
class WrittenFile:
    """A file of chunks that was written: what `.metadata` and `files.json` need to know of it. `sha256` is empty if not hashed."""

    name: str
    num_bytes: int
    sha256: str
    places: tuple[tuple[PendingChunk, int, int], ...]


def write_chunks(
    directory: Path, number: int, chunks: Sequence[PendingChunk], *, hashed: bool, done: Callable[[PendingChunk], None]
) -> WrittenFile:
    """Write chunks as file `number` of a checkpoint, one of them in memory at a time; `done` is called after each."""
    name, places = f"__0_{number}.distcp", []
    with OutFile(directory / name, hashed=hashed) as file:
        for chunk in chunks:
            numbers = torch.empty(chunk.sizes, dtype=chunk.dtype)
            chunk.fill(numbers)
            start, blocks = file.size, [flat_bytes(as_bytes(numbers))]
            write_archive(file, PendingTensor(chunk.sizes, chunk.dtype, lambda blocks=blocks: blocks))  # type: ignore[misc]
            places.append((chunk, start, file.size - start))
            done(chunk)
    return WrittenFile(name, file.size, file.sha256, tuple(places))


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


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in SAFE_GLOBALS.get(module, "").split():
            raise UnsafeGlobalError(f"{module}.{name}")
        return super().find_class(module, name)


def _load_metadata(path: Path) -> Any:
    try:
        content = path.read_bytes()
        refuse_memo_bombs(content)
        return _MetadataUnpickler(io.BytesIO(content)).load()
    except UnsafeGlobalError as error:
        raise ConversionError(f"refuses to load {error} from {path}; no checkpoint needs it, so do not trust this one") from None
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}; give the directory of a torch_dist checkpoint") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ConversionError(f"{path} is damaged ({error!r}); copy the checkpoint again") from None


def _build_index(directory: Path, metadata: Any) -> CheckpointIndex:
    _check_places(directory, metadata.storage_data)
    tensors, objects = {}, []
    for name, stored in metadata.state_dict_metadata.items():
        if not isinstance(name, str):
            raise TypeError(f"a tensor is called {name!r}")
        if isinstance(stored, dcp.BytesStorageMetadata):
            objects.append(name)
        else:
            chunks = tuple(_build_chunk(name, chunk, metadata.storage_data) for chunk in stored.chunks)
            tensors[name] = StoredTensor(_shape(stored.size), _dtype(stored.properties.dtype), chunks)
            if any(len(chunk.sizes) != len(tensors[name].shape) for chunk in chunks):
                raise ValueError(f"{name} and its chunks have different numbers of axes")
    return CheckpointIndex(directory, tensors, tuple(objects))


def _check_places(directory: Path, places: dict[dcp.MetadataIndex, Any]) -> None:
    file_bytes: dict[str, int] = {}
    for index, place in places.items():
        name = place.relative_path
        if name not in file_bytes:
            file_bytes[name] = plain_file(directory, name, named_by=METADATA).stat().st_size
        if getattr(place, "transform_descriptors", None):
            raise ConversionError(f"{directory / name}: {index.fqn} is stored transformed; save it without transforms")
        if place.offset < 0 or place.length < 0 or place.offset + place.length > file_bytes[name]:
            raise ConversionError(
                f"{directory / name} has {file_bytes[name]} bytes, but {METADATA} places {index.fqn} at "
                f"{place.offset} to {place.offset + place.length}; copy the checkpoint again"
            )


def _build_chunk(name: str, chunk: dcp.ChunkStorageMetadata, places: dict[dcp.MetadataIndex, Any]) -> StoredChunk:
    place = places[dcp.MetadataIndex(name, chunk.offsets)]
    return StoredChunk(_shape(chunk.offsets), _shape(chunk.sizes), place.relative_path, place.offset, place.length)


def _shape(sizes: Any) -> Shape:
    shape = tuple(sizes)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"a shape {str(shape)[:80]}")
    return shape


def _dtype(dtype: Any) -> torch.dtype:
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"a number type {str(dtype)[:80]}")
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
