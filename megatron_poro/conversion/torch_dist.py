"""Megatron's distributed checkpoint format (torch_dist) as files, without process group, GPU or megatron-core.

The directory holds `.metadata` (a pickle that says where each chunk of each tensor lies), `*.distcp` (chunks, each as
`torch.save` wrote it), `common.pt` and `metadata.json`. Names and shapes are global, so one checkpoint loads in any
parallel layout. The writer holds one chunk in memory; the reader knows only the classes a genuine `.metadata` names, so
nothing in it can run code.
"""

import io
import itertools
import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp

from megatron_poro.conversion.files import flush_to_disk, plain_file
from megatron_poro.conversion.table import Shape
from megatron_poro.errors import ConversionError

Box = tuple[slice, ...]

METADATA = ".metadata"
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
FILE_BYTES = 5 * 10**9

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
class Chunk:
    """A box of a tensor and the bytes of a file that hold it."""

    offsets: Shape
    sizes: Shape
    file: str
    start: int
    length: int

    @property
    def box(self) -> Box:
        """The chunk's place in the tensor, as an index."""
        return tuple(slice(offset, offset + size) for offset, size in zip(self.offsets, self.sizes, strict=True))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the checkpoint lists it."""

    shape: Shape
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class CheckpointIndex:
    """What a checkpoint holds: tensors by name, and the names of its opaque objects, which are never opened."""

    directory: Path
    tensors: dict[str, StoredTensor]
    objects: tuple[str, ...]

    def read_tensor(self, name: str, region: Box = ()) -> torch.Tensor:
        """`tensor[region]`, reading only the chunks that overlap it; bounds are plain, axes left out are whole."""
        stored = self.tensors[name]
        box = region + tuple(slice(0, size) for size in stored.shape[len(region) :])
        parts = [(chunk, overlap) for chunk in stored.chunks if (overlap := _intersect(chunk.box, box))]
        _check_cover(self.directory, name, box, [overlap for _, overlap in parts])
        tensor = torch.empty([side.stop - side.start for side in box], dtype=stored.dtype)
        for chunk, overlap in parts:
            source = _read_chunk(self.directory, name, stored.dtype, chunk=chunk)
            tensor[_relative(overlap, box)] = source[_relative(overlap, chunk.box)]
        return tensor


def read_checkpoint_index(directory: Path) -> CheckpointIndex:
    """Read `.metadata` without trusting it.

    Raises ConversionError when it is missing or damaged, names anything but a checkpoint's records, or points outside
    the folder or beyond a file.
    """
    metadata = _load_metadata(directory / METADATA)
    try:
        return _build_index(directory, metadata)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise ConversionError(f"{directory / METADATA} is damaged ({error!r}); copy the checkpoint again") from None


def check_metadata_is_safe(directory: Path) -> None:
    """Raise ConversionError unless `.metadata` holds only a checkpoint's records and points only into the folder.

    torch and megatron-core open `.metadata` with plain pickle, which runs whatever it names: call this before they do.
    """
    read_checkpoint_index(directory)


class TorchDistWriter:
    """Context manager that writes a checkpoint into an existing empty directory, one chunk in memory at a time."""

    def __init__(self, directory: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self.directory = directory
        self._file_bytes = file_bytes
        self._stored: dict[str, dcp.TensorStorageMetadata] = {}
        self._places: dict[dcp.MetadataIndex, Any] = {}
        self._num_files = 0
        self._file: BinaryIO | None = None

    def write(self, name: str, chunk: torch.Tensor, *, offsets: Shape, shape: Shape) -> None:
        """Append a chunk, which lies at `offsets` in the tensor `name` of global shape `shape`."""
        file = self._open_file()
        start = file.tell()
        # Cloned, because torch.save of a view writes all that it is a view of.
        torch.save(chunk.clone(memory_format=torch.contiguous_format), file)
        index = dcp.MetadataIndex(name, torch.Size(offsets))
        self._places[index] = filesystem._StorageInfo(Path(file.name).name, start, file.tell() - start)
        properties = dcp.TensorProperties(dtype=chunk.dtype)
        stored = self._stored.setdefault(name, dcp.TensorStorageMetadata(properties, torch.Size(shape), []))
        stored.chunks.append(dcp.ChunkStorageMetadata(torch.Size(offsets), chunk.shape))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._close_file()
        if kind is None:
            self._write_metadata()

    def _open_file(self) -> BinaryIO:
        if self._file is not None and self._file.tell() >= self._file_bytes:
            self._close_file()
        if self._file is None:
            self._file = (self.directory / f"__0_{self._num_files}.distcp").open("xb")
            self._num_files += 1
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            flush_to_disk(self._file)
            self._file.close()
            self._file = None

    def _write_metadata(self) -> None:
        (self.directory / "metadata.json").write_text(json.dumps(FORMAT))
        torch.save({}, self.directory / "common.pt")
        with (self.directory / METADATA).open("xb") as file:
            pickle.dump(dcp.Metadata(state_dict_metadata=dict(self._stored), storage_data=self._places), file)
            flush_to_disk(file)


class _UnsafeGlobalError(Exception):
    """`.metadata` names something that is no record of a checkpoint."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in SAFE_GLOBALS.get(module, "").split():
            raise _UnsafeGlobalError(f"{module}.{name}")
        return super().find_class(module, name)


def _load_metadata(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _MetadataUnpickler(file).load()
    except _UnsafeGlobalError as error:
        raise ConversionError(f"refuses to load {error} from {path}; no checkpoint needs it, so do not trust this one") from None
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}; give the directory of a torch_dist checkpoint") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ConversionError(f"{path} is damaged ({error!r}); copy the checkpoint again") from None


def _build_index(directory: Path, metadata: Any) -> CheckpointIndex:
    _check_places(directory, metadata.storage_data)
    tensors, objects = {}, []
    for name, stored in metadata.state_dict_metadata.items():
        if isinstance(stored, dcp.BytesStorageMetadata):
            objects.append(name)
        else:
            chunks = tuple(_build_chunk(name, chunk, metadata.storage_data) for chunk in stored.chunks)
            tensors[name] = StoredTensor(tuple(stored.size), stored.properties.dtype, chunks)
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


def _build_chunk(name: str, chunk: dcp.ChunkStorageMetadata, places: dict[dcp.MetadataIndex, Any]) -> Chunk:
    place = places[dcp.MetadataIndex(name, chunk.offsets)]
    return Chunk(tuple(chunk.offsets), tuple(chunk.sizes), place.relative_path, place.offset, place.length)


def _read_chunk(directory: Path, name: str, dtype: torch.dtype, *, chunk: Chunk) -> torch.Tensor:
    with (directory / chunk.file).open("rb") as file:
        file.seek(chunk.start)
        content = file.read(chunk.length)
    try:
        tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ConversionError(
            f"{directory / chunk.file}: {name} at {chunk.start} is damaged ({error}); copy the checkpoint again"
        ) from None
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or tuple(tensor.shape) != chunk.sizes:
        raise ConversionError(f"{directory / chunk.file}: {name} is not what {METADATA} says; copy the checkpoint again")
    return tensor


def _check_cover(directory: Path, name: str, box: Box, overlaps: Sequence[Box]) -> None:
    """Chunks that are disjoint and have the box's volume together fill it."""
    disjoint = not any(_intersect(one, other) for one, other in itertools.combinations(overlaps, 2))
    if not disjoint or sum(map(_volume, overlaps)) != _volume(box):
        raise ConversionError(f"{directory / METADATA}: the chunks of {name} do not fill it; the checkpoint is incomplete")


def _intersect(one: Box, other: Box) -> Box:
    """The common part of two boxes; empty when there is none."""
    common = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return common if all(side.start < side.stop for side in common) else ()


def _relative(box: Box, origin: Box) -> Box:
    return tuple(slice(side.start - o.start, side.stop - o.start) for side, o in zip(box, origin, strict=True))


def _volume(box: Box) -> int:
    return math.prod(side.stop - side.start for side in box)
