"""Which files to read: names, folders and globs as the user gives them, and the share of them that a shard takes."""

import glob
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_indexing.errors import DataError

Kind = Literal["lines", "parquet", "text"]
Shard = tuple[int, int]
"""Number of this shard, from 0, and how many there are."""

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".xz": "xz"}
_KINDS: dict[str, Kind] = {".jsonl": "lines", ".json": "lines", ".ndjson": "lines", ".parquet": "parquet", ".txt": "text"}
_ENDINGS = ".jsonl, .json, .ndjson or .txt, plain or .gz, .zst, .xz; or .parquet"


@dataclass(frozen=True)
class InputPath:
    """A file to read. `name` is how manifests and rejects call it; a file given by itself may have any ending: JSON lines."""

    path: Path
    name: str
    kind: Kind
    compression: str | None
    num_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Segment:
    """What to read of a file: its lines that begin at the bytes `begin` .. `end` - 1, or its row groups of these numbers.

    A file that cannot be entered in the middle has one segment, the whole.
    """

    source: InputPath
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Bytes on disk, for the progress bar."""
        return self.source.num_bytes if self.source.kind == "parquet" else self.end - self.begin


def find_inputs(names: Sequence[str | Path]) -> list[InputPath]:
    """Files of all names in the order given, those of a folder or glob by name; every one must be readable and new."""
    found = [item for name in names for item in _find(str(name))]
    times = Counter(item.path.resolve() for item in found)
    for item in found:
        if times[item.path.resolve()] > 1:
            raise DataError(f"{item.path}: given {times[item.path.resolve()]} times; give each input once")
    return found


def parse_shard(text: str) -> Shard:
    """Shard from I/N, such as 0/64 for the first of 64."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise DataError(f"shard {text!r} is not I/N with I from 0 to N - 1, such as 0/64 for the first of 64")
    return int(match[1]), int(match[2])


def plan_segments(inputs: Sequence[InputPath], shard: Shard = (0, 1)) -> list[Segment]:
    """The share of a shard: all files laid end to end and cut into equal numbers of bytes.

    A line, a row group, or a file that cannot be entered belongs to the shard in which it begins.
    """
    number, count = shard
    total = sum(item.num_bytes for item in inputs)
    first, end = total * number // count, total * (number + 1) // count
    segments: list[Segment] = []
    start = 0
    for item in inputs:
        segments += _cut(item, first - start, end - start, last=number == count - 1)
        start += item.num_bytes
    return segments


def _cut(item: InputPath, first: int, end: int, *, last: bool) -> Iterator[Segment]:
    """Segment of a file within the bytes first .. end - 1 counted from its start; empty files fall to the last shard."""
    if item.num_bytes == 0:
        if last:
            yield Segment(item, 0, 0)
    elif item.kind == "parquet":
        groups = [group for group, start in enumerate(_row_group_starts(item)) if first <= start < end]
        if groups:
            yield Segment(item, groups[0], groups[-1] + 1)
    elif item.kind == "lines" and item.compression is None:
        if max(first, 0) < min(end, item.num_bytes):
            yield Segment(item, max(first, 0), min(end, item.num_bytes))
    elif first <= 0 < end:
        yield Segment(item, 0, item.num_bytes)


def _row_group_starts(item: InputPath) -> list[int]:
    from data_indexing.parquet import row_group_bytes

    starts = [0]
    for size in row_group_bytes(item.path):
        starts.append(min(starts[-1] + size, item.num_bytes - 1))
    return starts[:-1]


def _find(name: str) -> Iterator[InputPath]:
    path = Path(name)
    if path.is_dir():
        yield from _find_in_folder(path)
    elif path.exists() or not glob.has_magic(name):
        yield _input(path, path.name)
    else:
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise DataError(f"{name}: no file matches; give files, folders or globs")
        root = Path(re.split(r"[*?\[]", name)[0] + "x").parent
        for match in map(Path, matches):
            yield from _find_in_folder(match) if match.is_dir() else [_input(match, str(match.relative_to(root)))]


def _find_in_folder(folder: Path) -> Iterator[InputPath]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith((".", "_"))]
    for path in files:
        if _kind_and_compression(path)[0] is None:
            raise DataError(f"{path}: a folder may hold files in {_ENDINGS}; remove this one or give the files by a glob")
    if not files:
        raise DataError(f"{folder}: no files in {_ENDINGS}")
    for path in files:
        yield _input(path, str(path.relative_to(folder)))


def _input(path: Path, name: str) -> InputPath:
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a regular file; give files, folders or globs")
    try:
        path.open("rb").close()
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give readable files in {_ENDINGS}") from None
    kind, compression = _kind_and_compression(path)
    return InputPath(path, name, kind or "lines", compression, status.st_size, status.st_mtime_ns)


def _kind_and_compression(path: Path) -> tuple[Kind | None, str | None]:
    compression = _COMPRESSIONS.get(path.suffix)
    ending = path.with_suffix("").suffix if compression else path.suffix
    return _KINDS.get(ending), compression
