"""Which files to read: names, folders and globs as the user gives them, and the share of them that a shard takes."""

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from data_indexing.errors import DataError
from data_indexing.folders import expand, walk
from data_indexing.format import Prefix, bin_path, idx_path, manifest_path, rejected_path, unpublished_path
from data_indexing.streams import partial_path

Kind = Literal["lines", "parquet", "text"]
Shard = tuple[int, int]
"""Number of this shard, from 0, and how many there are."""

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".xz": "xz"}
_KINDS: dict[str, Kind] = {".jsonl": "lines", ".json": "lines", ".ndjson": "lines", ".parquet": "parquet", ".txt": "text"}
_ENDINGS = ".jsonl, .json, .ndjson or .txt, plain or .gz, .zst, .xz; or .parquet"


@dataclass(frozen=True)
class InputPath:
    """A file to read. `name`, how manifests and rejects call it, is its path from the folder that all inputs share.

    A file given by itself may have any ending: JSON lines. `version` is that of `file_version`.
    """

    path: Path
    name: str
    kind: Kind
    compression: str | None
    num_bytes: int
    version: tuple[int, ...] = ()


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


def find_inputs(names: Sequence[str | Path], output: Prefix | None = None) -> list[InputPath]:
    """Files of all names in the order given, those of a folder or glob by name; every one must be readable and new.

    What a run to `output` has left in a folder, or among the matches of a glob, is no input.
    """
    found = [(root, path) for name in names for root, path in _find(str(name), output)]
    times = Counter(path.resolve() for _, path in found)
    for _, path in found:
        if times[path.resolve()] > 1:
            raise DataError(f"{path}: given {times[path.resolve()]} times; give each input once")
    common = os.path.commonpath([os.path.abspath(root) for root, _ in found]) if found else ""
    return [_input(path, os.path.relpath(os.path.abspath(path), common)) for _, path in found]


def file_version(status: os.stat_result) -> tuple[int, ...]:
    """What another version of a file does not share, though it may have been given the same size and time."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def inputs_sha256(inputs: Sequence[InputPath]) -> str:
    """Hash of the names and sizes of files: the same for all shards of them, wherever they lie."""
    return hashlib.sha256(json.dumps([(item.name, item.num_bytes) for item in inputs]).encode()).hexdigest()


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
    from data_indexing.parquet import row_groups

    starts = [0]
    for group in row_groups(item.path):
        starts.append(min(starts[-1] + group.num_bytes, item.num_bytes - 1))
    return starts[:-1]


def _find(name: str, output: Prefix | None) -> list[tuple[Path, Path]]:
    """The files of one name, each once, with the folder from which their names count."""
    path = Path(name)
    if path.is_dir():
        root, found = path, list(_find_in_folder(path, output))
    elif path.exists() or not glob.has_magic(name):
        root, found = path.parent, [path]
    else:
        root, found = _find_by_glob(path, output)
    once: dict[Path, Path] = {}
    for file in found:
        once.setdefault(file.resolve(), file)
    return [(root, file) for file in once.values()]


def _find_by_glob(pattern: Path, output: Prefix | None) -> tuple[Path, list[Path]]:
    first = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    root = Path(*pattern.parts[:first])
    matches = [match for match in expand(root, pattern.parts[first:]) if not _is_output(match, output)]
    if not matches:
        raise DataError(f"{pattern}: no file matches; give files, folders or globs")
    found = (_find_in_folder(match, output) if match.is_dir() else [match] for match in matches)
    return root, list(chain.from_iterable(found))


def _find_in_folder(folder: Path, output: Prefix | None) -> Iterator[Path]:
    files = [path for path in walk(folder) if not path.name.startswith((".", "_")) and not _is_output(path, output)]
    for path in files:
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path}: a link to nothing; remove it or bring back what it led to")
        if _kind_and_compression(path)[0] is None:
            raise DataError(f"{path}: a folder may hold files in {_ENDINGS}; remove this one or give the files by a glob")
    if not files:
        raise DataError(f"{folder}: no files in {_ENDINGS}")
    yield from files


def _is_output(path: Path, output: Prefix | None) -> bool:
    """Whether a path is what a run to this prefix writes or has left. PREFIX.json may be a text, if no .bin is beside it."""
    if output is None:
        return False
    own = [unpublished_path(output), rejected_path(output), bin_path(output), idx_path(output)]
    own += [manifest_path(output)] if bin_path(output).exists() else []
    own += [partial_path(file) for file in (rejected_path(output), bin_path(output), idx_path(output), manifest_path(output))]
    real = [file.parent.resolve() / file.name for file in own]
    place = path.parent.resolve() / path.name
    return place in real or real[0] in place.parents


def _input(path: Path, name: str) -> InputPath:
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a regular file; give files, folders or globs")
    try:
        path.open("rb").close()
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give readable files in {_ENDINGS}") from None
    kind, compression = _kind_and_compression(path)
    return InputPath(path, name, kind or "lines", compression, status.st_size, file_version(status))


def _kind_and_compression(path: Path) -> tuple[Kind | None, str | None]:
    compression = _COMPRESSIONS.get(path.suffix)
    ending = path.with_suffix("").suffix if compression else path.suffix
    return _KINDS.get(ending), compression
