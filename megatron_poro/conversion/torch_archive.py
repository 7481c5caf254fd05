"""What `torch.save` writes, read without executing it and written without holding it.

An archive is a zip without compression: `data.pkl`, a pickle that refers to its tensors' numbers by key, and one record of
numbers a tensor. Reading gives the pickle's tree with a `StoredArray` for each tensor, so what is not asked for stays on
the disk.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from isal.isal_zlib import crc32

from megatron_poro.conversion.arrays import Box, Record, Shape, StoredArray, read_exactly
from megatron_poro.conversion.files import OutFile
from megatron_poro.conversion.safe_pickle import Call, Kind, UnsafeGlobalError, read_pickle
from megatron_poro.errors import ConversionError

_LEAST_PICKLE_BYTES = 2**22
"""A pickle may have this many bytes and a sixteenth of those of the numbers beside it: its objects take fifty times its size."""
_ALIGNMENT = 64
_STORAGES = {
    "FloatStorage": torch.float32,
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _STORAGES.values()}
_INERT_PACKAGES = ("megatron", "numpy", "transformer_engine", "apex", "argparse", "pathlib", "signal", "torch", "types")
_INERT_BUILTINS = ("set", "frozenset", "complex", "slice", "range", "bytearray")
"""Whose classes may stand in a training state beside the weights: arguments, enums, random states."""


@dataclass(frozen=True)
class _Storage:
    record: Record
    dtype: torch.dtype
    num_numbers: int


def read_archive(path: Path, *, start: int = 0, num_bytes: int | None = None) -> Any:
    """The tree of an archive that lies in `path` from byte `start` on; its tensors are `StoredArray`s, unread.

    Raises ConversionError for a damaged archive, one in the format of before torch 1.6, and one that names a function or a
    class that no checkpoint needs.
    """
    num_bytes = path.stat().st_size - start if num_bytes is None else num_bytes
    try:
        records = _list_records(path, start, num_bytes)
        return _read_tree(path, records)
    except UnsafeGlobalError as error:
        raise ConversionError(f"refuses to load {error} from {path}; no checkpoint needs it, so do not trust this one") from None
    except ConversionError:
        raise
    except Exception as error:  # a damaged zip or pickle raises nearly anything
        raise ConversionError(f"{path} is damaged ({_describe(error)}); copy it again") from None


def most_pickle_bytes(num_bytes: int) -> int:
    """How large a pickle may be that describes `num_bytes` bytes of numbers."""
    return _LEAST_PICKLE_BYTES + num_bytes // 16


def _describe(error: Exception) -> str:
    return "no archive of torch 1.6 or later" if isinstance(error, zipfile.BadZipFile) else repr(error)


class _Window(io.RawIOBase):
    """Bytes of a file as a file of their own, which zipfile can seek in."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._place = file, start, size, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._place, self._size)[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._place = base + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._place)
        self._file.seek(self._start + self._place)
        content = self._file.read(left if size is None or size < 0 else min(size, left))
        self._place += len(content)
        return content


def _list_records(path: Path, start: int, num_bytes: int) -> dict[str, Record]:
    """Where the entries of a zip lie, by name without the archive's own."""
    records = {}
    with path.open("rb") as file, zipfile.ZipFile(_Window(file, start, num_bytes)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"{entry.filename} is compressed")
            file.seek(start + entry.header_offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise ValueError(f"{entry.filename} has no header")
            place = entry.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
            if place + entry.file_size > num_bytes:
                raise ValueError(f"{entry.filename} ends beyond the archive")
            name = entry.filename.partition("/")[2]
            if name in records:
                raise ValueError(f"{entry.filename} is there twice")
            records[name] = Record(path, start + place, entry.file_size, entry.CRC or None)
    return records


def _read_tree(path: Path, records: Mapping[str, Record]) -> Any:
    pickled = records["data.pkl"]
    if pickled.num_bytes > most_pickle_bytes(sum(record.num_bytes for record in records.values()) - pickled.num_bytes):
        raise ValueError(f"its pickle has {pickled.num_bytes} bytes")
    content = bytearray(pickled.num_bytes)
    read_exactly(path, memoryview(content), pickled.start)
    return read_pickle(bytes(content), known=_KNOWN, allowed=_may_be_inert, load_reference=partial(_load_storage, records))


def _may_be_inert(kind: Kind) -> bool:
    package = kind.module.split(".")[0]
    if package in ("builtins", "__builtin__"):
        return kind.name in _INERT_BUILTINS
    return package in _INERT_PACKAGES and "." not in kind.name and (kind.name[:1].isupper() or package == "numpy")


def _load_storage(records: Mapping[str, Record], reference: Any) -> _Storage:
    kind, dtype, key, _, num_numbers = reference
    if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(num_numbers) is not int:
        raise ValueError("a reference to what is no storage")
    record = records[f"data/{key}"]
    if record.num_bytes != num_numbers * dtype.itemsize:
        raise ValueError(f"record {key[:40]} has {record.num_bytes} bytes, not {num_numbers} x {dtype.itemsize}")
    return _Storage(record, dtype, num_numbers)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: object) -> StoredArray:
    if type(storage) is not _Storage or type(size) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor without storage or shape")
    shape: Shape = size
    if len(shape) > 8 or not all(type(n) is int and n >= 0 for n in (offset, *shape)):
        raise ValueError("a tensor without a shape")
    if not shape:  # a scalar, which no weight is
        shape, stride = (1,), (1,)
    expected = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if any(s != e for s, e, n in zip(stride, expected, shape, strict=True) if n > 1):
        return StoredArray("a tensor that is not stored row by row", shape, storage.dtype, ())
    if offset + math.prod(shape) > storage.num_numbers:
        raise ValueError(f"a tensor of shape {shape} at {offset} of {storage.num_numbers} numbers")
    place = storage.record.start + offset * storage.dtype.itemsize
    return StoredArray(
        "a tensor", shape, storage.dtype, (Box((0,) * len(shape), shape, storage.record.path, place, storage.record),)
    )


def _rebuild_parameter(data: Any, *rest: object) -> StoredArray:
    if type(data) is not StoredArray:
        raise ValueError("a parameter that is no tensor")
    return data


def _flat(sizes: Any) -> tuple[int, ...]:
    if type(sizes) is not tuple or not all(type(size) is int for size in sizes):
        raise ValueError("a size that is no tuple of numbers")
    return sizes


def _empty_dict() -> dict[Any, Any]:
    """Its items come one by one, so that their keys are looked at."""
    return {}


SIZE = {Kind("torch", "Size"): Call(_flat)}
_KNOWN: dict[Kind, Any] = {
    Kind("collections", "OrderedDict"): Call(_empty_dict),
    Kind("torch._utils", "_rebuild_tensor_v2"): Call(_rebuild_tensor),
    Kind("torch._utils", "_rebuild_parameter"): Call(_rebuild_parameter),
    Kind("_codecs", "encode"): Call(lambda *args: None),
    Kind("io", "BytesIO"): Call(lambda *args: None),
    **SIZE,
    **{Kind("torch", name): dtype for name, dtype in (_STORAGES | _DTYPES).items()},
}


@dataclass(frozen=True)
class PendingTensor:
    """A tensor to be written: its numbers come in blocks, in order, when its turn is there."""

    shape: Shape
    dtype: torch.dtype
    blocks: Callable[[], Iterable[memoryview]]

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_archive(file: OutFile, tree: Any) -> None:
    """Append what `torch.save(tree)` would write, `PendingTensor`s standing for its tensors; one block is in memory at a time."""
    content = io.BytesIO()
    pickler = _Pickler(content)
    pickler.dump(tree)
    archive = _ZipWriter(file)
    archive.add("data.pkl", len(content.getvalue()), [content.getbuffer()])
    archive.add("byteorder", 6, [memoryview(b"little")])
    for key, pending in enumerate(pickler.pending):
        archive.add(f"data/{key}", pending.num_bytes, pending.blocks())
    archive.add("version", 2, [memoryview(b"3\n")])
    archive.close()


class _StorageReference:
    def __init__(self, key: int, tensor: PendingTensor) -> None:
        self.key, self.tensor = key, tensor


class _Pickler(pickle.Pickler):
    """Pickles as torch.save does; `pending` are the tensors it met, in the order of their keys."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=2)
        self.pending: list[PendingTensor] = []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, PendingTensor):
            return NotImplemented
        self.pending.append(value)
        strides = tuple(math.prod(value.shape[axis + 1 :]) for axis in range(len(value.shape)))
        storage = _StorageReference(len(self.pending) - 1, value)
        return torch._utils._rebuild_tensor_v2, (storage, 0, value.shape, strides, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _StorageReference):
            return None
        kind = next(name for name, dtype in _STORAGES.items() if dtype == value.tensor.dtype)
        return "storage", getattr(torch, kind), str(value.key), "cpu", math.prod(value.tensor.shape)


class _ZipWriter:
    """A zip of uncompressed entries that begin at multiples of 64 bytes, as torch wants them, with sizes of 64 bits."""

    def __init__(self, file: OutFile) -> None:
        self._file, self._origin = file, file.size
        self._directory: list[bytes] = []

    def add(self, name: str, num_bytes: int, blocks: Iterable[memoryview]) -> None:
        offset, path = self._file.size - self._origin, f"archive/{name}".encode()
        sizes = struct.pack("<HHQQ", 1, 16, num_bytes, num_bytes)
        padding = -(offset + 30 + len(path) + len(sizes) + 4) % _ALIGNMENT
        extra = sizes + struct.pack("<HH", 0x4246, padding) + b"Z" * padding
        known = _checksum(blocks) if isinstance(blocks, Sequence) else None
        crc = known or 0
        self._file.write(self._local_header(path, extra, crc))
        for block in blocks:
            crc = crc if known is not None else crc32(block, crc)
            self._file.write(block)
        if self._file.size != self._origin + offset + 30 + len(path) + len(extra) + num_bytes:
            raise ValueError(f"{name}: not {num_bytes} bytes were given")
        if known is None:
            self._file.patch(self._origin + offset + 14, struct.pack("<I", crc))
        sizes = struct.pack("<HHQQQ", 1, 24, num_bytes, num_bytes, offset)
        fields = (45, 45, 0, 0, 0, 0x21, crc, 2**32 - 1, 2**32 - 1, len(path), len(sizes), 0, 0, 0, 0, 2**32 - 1)
        self._directory.append(b"PK\1\2" + struct.pack("<HHHHHHIIIHHHHHII", *fields) + path + sizes)

    def close(self) -> None:
        start, count, listing = self._file.size - self._origin, len(self._directory), b"".join(self._directory)
        end = start + len(listing)
        self._file.write(listing)
        self._file.write(b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, len(listing), start))
        self._file.write(b"PK\6\7" + struct.pack("<IQI", 0, end, 1))
        few = min(count, 2**16 - 1)
        self._file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, few, few, 2**32 - 1, 2**32 - 1, 0))

    def _local_header(self, path: bytes, extra: bytes, crc: int) -> bytes:
        fields = (45, 0, 0, 0, 0x21, crc, 2**32 - 1, 2**32 - 1, len(path), len(extra))
        return b"PK\3\4" + struct.pack("<HHHHHIIIHH", *fields) + path + extra


def _checksum(blocks: Sequence[memoryview]) -> int:
    crc = 0
    for block in blocks:
        crc = crc32(block, crc)
    return crc


def check_records(records: Iterable[Record]) -> Iterator[int]:
    """Read records and compare them with the checksums that were written with them; yields bytes as they are read.

    Raises ConversionError for the first that was changed.
    """
    for record in records:
        crc, done = 0, 0
        while done < record.num_bytes:
            block = bytearray(min(2**24, record.num_bytes - done))
            read_exactly(record.path, memoryview(block), record.start + done)
            crc, done = crc32(block, crc), done + len(block)
            yield len(block)
        if record.crc32 not in (None, crc):
            raise ConversionError(
                f"{record.path} is damaged: its bytes {record.start} to {record.start + record.num_bytes} are not what their "
                "checksum says; move the folder away or copy it again"
            )
