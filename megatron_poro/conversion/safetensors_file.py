"""The header of a safetensors file: eight bytes of length, JSON, then the numbers of all tensors without a gap.

Read by ourselves, because the bytes' places are wanted and the file is not to be mapped; and nothing is believed: a header
that does not describe the file to the byte is refused before anything is made of it.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_poro.conversion.arrays import Box, Record, Shape, StoredArray
from megatron_poro.errors import ConversionError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Number types that are converted; anything else is quantised or not a weight."""

_OTHER_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip
_BITS = {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()} | _OTHER_BITS
_MOST_HEADER_BYTES = 10**8
"""What the safetensors library allows too."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file that is to be written."""

    name: str
    shape: Shape
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Listed:
    """A tensor as a header lists it; `array` is None where its number type is not one of `DTYPES`."""

    dtype: str
    array: StoredArray | None


def read_header(path: Path) -> dict[str, Listed]:
    """All tensors of a file, unread. Raises ConversionError when the header does not describe the file."""
    try:
        return _parse(path, *_read_json(path))
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ConversionError(f"{path} is damaged ({error}); copy it again") from None
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}; copy it again") from None


def build_header(entries: Sequence[Entry]) -> bytes:
    """The length and the JSON that open a file; spaces make the numbers start at a multiple of 8."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        stop = start + entry.num_bytes
        header[entry.name] = {"dtype": names[entry.dtype], "shape": entry.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _read_json(path: Path) -> tuple[dict[str, Any], int]:
    """The header and where the numbers begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        opening = file.read(8)
        length = struct.unpack("<Q", opening)[0] if len(opening) == 8 else size
        if length > min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError(f"its header would have {length} bytes, the file has {size}")
        header = json.loads(file.read(length).decode(), object_pairs_hook=_refuse_repeated)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, 8 + length


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("its header names a tensor twice")
    return content


def _parse(path: Path, header: Mapping[str, Any], origin: int) -> dict[str, Listed]:
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    spans = sorted(_span(name, entry) for name, entry in tensors.items())
    if any(before[1] != after[0] for before, after in zip([(0, 0), *spans], spans, strict=False)):
        raise ValueError("its tensors overlap or leave a gap")
    size, end = path.stat().st_size, origin + (spans[-1][1] if spans else 0)
    if size != end:
        raise ValueError(f"it has {size} bytes, its header describes {end}")
    return {name: _list(path, name, entry, origin) for name, entry in tensors.items()}


def _span(name: str, entry: Any) -> tuple[int, int]:
    """First and last byte of a tensor, which its shape and type must need."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} has no dtype, shape and data_offsets, or more than them")
    shape, offsets, bits = entry["shape"], entry["data_offsets"], _BITS.get(entry["dtype"])
    numbers = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not numbers or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise ValueError(f"{name} has shape {str(shape)[:80]} at {str(offsets)[:80]}")
    if bits is None:
        raise ValueError(f"{name} holds {str(entry['dtype'])[:40]}, which is no number type")
    if len(shape) > 8 or offsets[1] - offsets[0] != math.prod(shape) * bits // 8:
        raise ValueError(f"{name} of shape {str(shape)[:80]} does not fill bytes {offsets[0]} to {offsets[1]}")
    return offsets[0], offsets[1]


def _list(path: Path, name: str, entry: Mapping[str, Any], origin: int) -> Listed:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        return Listed(entry["dtype"], None)
    shape, (start, end) = tuple(entry["shape"]) or (1,), entry["data_offsets"]
    record = Record(path, origin + start, end - start)
    boxes = (Box((0,) * len(shape), shape, path, record.start, record),) if end > start else ()
    return Listed(entry["dtype"], StoredArray(name, shape, dtype, boxes))
