"""Tensors where they lie: boxes of consecutive bytes in files. All formats are read through this; no file is read whole."""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_poro.errors import ConversionError

Shape = tuple[int, ...]
Region = tuple[slice, ...]
Bytes = NDArray[np.uint8]

_MOST_BOXES = 10_000
"""Boxes that may make one layer of a tensor: far more than any layout gives, few enough to compare each with each."""


@dataclass(frozen=True)
class Record:
    """Bytes that one writer wrote at once; `crc32` is what it says of them, None where the format says nothing."""

    path: Path
    start: int
    num_bytes: int
    crc32: int | None = None


@dataclass(frozen=True)
class Box:
    """A part of a tensor: `sizes` numbers from `offsets` on, row-major from byte `start` of a file on."""

    offsets: Shape
    sizes: Shape
    path: Path
    start: int
    record: Record

    def overlap(self, region: Region) -> Region:
        """What the box and a region have in common; empty when nothing."""
        common = tuple(
            slice(max(offset, side.start), min(offset + size, side.stop))
            for offset, size, side in zip(self.offsets, self.sizes, region, strict=True)
        )
        return common if all(side.start < side.stop for side in common) else ()


@dataclass(frozen=True)
class StoredArray:
    """A tensor of `shape` that its boxes fill. `name` is for messages."""

    name: str
    shape: Shape
    dtype: torch.dtype
    boxes: tuple[Box, ...]

    def read(self, region: Region = ()) -> torch.Tensor:
        """`tensor[region]`; axes left out are whole."""
        region = self._complete(region)
        out = torch.empty([side.stop - side.start for side in region], dtype=self.dtype)
        self.read_into(out, region)
        return out

    def read_into(self, out: torch.Tensor, region: Region = ()) -> None:
        """Fill `out`, of the region's shape and this dtype, reading no more of a file than the region needs."""
        region = self._complete(region)
        target = as_bytes(out)
        for box in self._near(region):
            if common := box.overlap(region):
                _read_overlap(target, region, box, common=common)

    def records(self) -> Iterator[Record]:
        """What the boxes lie in, each once."""
        yield from dict.fromkeys(box.record for box in self.boxes)

    def check_cover(self) -> None:
        """Raise ConversionError unless the boxes fill the shape and none overlaps another."""
        whole = math.prod(self.shape)
        if sum(math.prod(box.sizes) for box in self.boxes) != whole or not all(self._inside(box) for box in self.boxes):
            raise ConversionError(self._holes())
        for group in self._groups.values():
            _check_disjoint(group, self._holes())
        if self._groups.keys() - {None} and None in self._groups:
            _check_disjoint(self.boxes, self._holes())

    def _holes(self) -> str:
        where = self.boxes[0].path.parent if self.boxes else "the checkpoint"
        return f"{where}: the chunks of {self.name} do not fill it; the checkpoint is incomplete, copy it again"

    def _inside(self, box: Box) -> bool:
        return all(o >= 0 and o + n <= size for o, n, size in zip(box.offsets, box.sizes, self.shape, strict=True))

    def _complete(self, region: Region) -> Region:
        return region + tuple(slice(0, size) for size in self.shape[len(region) :])

    def _near(self, region: Region) -> Iterator[Box]:
        """The boxes that may overlap a region: those of its layers, where the leading axis is one of layers."""
        yield from self._groups.get(None, ())
        for layer in self._groups.keys() - {None}:
            if region[0].start <= layer < region[0].stop:
                yield from self._groups[layer]

    @cached_property
    def _groups(self) -> Mapping[int | None, Sequence[Box]]:
        """Boxes by layer, None for those that are not one slice of a leading axis of layers."""
        groups: dict[int | None, list[Box]] = {}
        for box in self.boxes:
            stacked = len(self.shape) > 1 and box.sizes[0] == 1
            groups.setdefault(box.offsets[0] if stacked else None, []).append(box)
        return groups


def stack(name: str, arrays: Sequence[StoredArray]) -> StoredArray:
    """Arrays of one shape and type as one with a leading axis. Raises ConversionError when they are not alike."""
    if len({(array.shape, array.dtype) for array in arrays}) != 1:
        raise ConversionError(
            f"{arrays[0].name} and the same of other layers have different shapes or types; convert it with its own tool"
        )
    boxes = tuple(
        replace(box, offsets=(n, *box.offsets), sizes=(1, *box.sizes)) for n, array in enumerate(arrays) for box in array.boxes
    )
    return StoredArray(name, (len(arrays), *arrays[0].shape), arrays[0].dtype, boxes)


def boxes_of_range(start: int, stop: int, shape: Sequence[int]) -> Iterator[tuple[Shape, Shape]]:
    """Offsets and sizes of the fewest boxes, in order, whose numbers are `start` to `stop` of a row-major tensor."""
    if start >= stop:
        return
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    inner = math.prod(shape[1:])
    row, within = divmod(start, inner)
    if within or stop < (row + 1) * inner:
        end = min(stop, (row + 1) * inner)
        for offsets, sizes in boxes_of_range(within, end - row * inner, shape[1:]):
            yield (row, *offsets), (1, *sizes)
        yield from boxes_of_range(end, stop, shape)
        return
    rows = stop // inner - row
    whole = tuple(shape[1:])
    yield (row, *(0 for _ in whole)), (rows, *whole)
    yield from boxes_of_range((row + rows) * inner, stop, shape)


def as_bytes(tensor: torch.Tensor) -> Bytes:
    """The memory of a tensor, the last axis in bytes; a view, of slices too. A scalar becomes one axis."""
    tensor = tensor.unsqueeze(0) if tensor.dim() == 0 else tensor
    return tensor.view(torch.uint8).numpy()


def flat_bytes(array: Bytes) -> memoryview:
    """The bytes of a contiguous array, in order."""
    flat: memoryview = array.data.cast("B")
    return flat


def read_exactly(path: Path, buffer: memoryview, start: int) -> None:
    """Fill `buffer` from byte `start` of a file on. Raises ConversionError when the file ends before or cannot be read."""
    with _opened(path) as descriptor:
        _fill(descriptor, path, buffer, start)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}; copy it again") from error


def _fill(descriptor: int, path: Path, buffer: memoryview, start: int) -> None:
    while buffer:
        count = os.preadv(descriptor, [buffer], start)
        if count == 0:
            raise ConversionError(f"{path} ends at byte {start}, before what it should hold; copy it again")
        buffer, start = buffer[count:], start + count


def _read_overlap(target: Bytes, region: Region, box: Box, *, common: Region) -> None:
    """Read `common`, which box and region share, into its place of `target`, in runs as long as they lie in the file."""
    itemsize = target.shape[-1] // (region[-1].stop - region[-1].start)
    axis = len(common) - 1
    while axis > 0 and _spans(common[axis], box.offsets[axis], box.sizes[axis]):
        axis -= 1
    # Axes before `axis` are walked; a run is a slice of it with all that lies below.
    strides = [math.prod(box.sizes[n + 1 :]) * itemsize for n in range(len(common))]
    run_bytes = (common[axis].stop - common[axis].start) * strides[axis]
    below = tuple(_move(c, r.start) for c, r in zip(common[axis:], region[axis:], strict=True))
    below = (*below[:-1], slice(below[-1].start * itemsize, below[-1].stop * itemsize))
    with _opened(box.path) as descriptor:
        for outer in itertools.product(*(range(side.start, side.stop) for side in common[:axis])):
            first = (*outer, common[axis].start)
            start = box.start + sum((n - o) * stride for n, o, stride in zip(first, box.offsets, strides, strict=False))
            place = tuple(n - side.start for n, side in zip(outer, region, strict=False))
            _read_run(descriptor, box.path, target[place + below], start=start, num_bytes=run_bytes)


def _read_run(descriptor: int, path: Path, view: Bytes, *, start: int, num_bytes: int) -> None:
    if view.flags.c_contiguous:
        _fill(descriptor, path, flat_bytes(view), start)
        return
    run = np.empty(num_bytes, np.uint8)
    _fill(descriptor, path, flat_bytes(run), start)
    view[...] = run.reshape(view.shape)


def _move(side: slice, origin: int) -> slice:
    return slice(side.start - origin, side.stop - origin)


def _spans(side: slice, offset: int, size: int) -> bool:
    return (side.start, side.stop) == (offset, offset + size)


def _check_disjoint(boxes: Sequence[Box], message: str) -> None:
    if len(boxes) > _MOST_BOXES:
        raise ConversionError(message)
    starts = np.array([box.offsets for box in boxes], np.int64)
    stops = starts + np.array([box.sizes for box in boxes], np.int64)
    for n in range(len(boxes) - 1):
        apart = (stops[n + 1 :] <= starts[n]) | (starts[n + 1 :] >= stops[n])
        if not apart.any(axis=1).all():
            raise ConversionError(message)
