"""Files that appear whole or not at all, and JSON that blames the file it came from."""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from megatron_poro.errors import ConversionError

LOCK = ".lock"
_BUFFER_BYTES = 8 * 2**20
_SPARE_BYTES = 2**20


@contextmanager
def publish(target: Path, *, num_bytes: int = 0) -> Iterator[Path]:
    """Yield a new directory beside `target` that takes its name when the block succeeds and vanishes when it fails.

    What a killed process left there is removed first. Raises ConversionError when `target` exists, another process is writing
    it, or the disk has less than `num_bytes` free.
    """
    _refuse_existing(target)
    partial = target.with_name(f".{target.name}.partial")
    try:
        _make_partial(partial)
        with (partial / LOCK).open("wb") as lock:
            _claim(lock.fileno(), target)
            try:
                _refuse_existing(target)
                _empty(partial)
                _check_space(target, num_bytes)
                yield partial
                flush_directory(partial)
                partial.rename(target)
                (target / LOCK).unlink()
                for directory in (target, target.parent):
                    flush_directory(directory, files=False)
            finally:
                if partial.exists():
                    shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ConversionError(f"{error.filename or target}: {error.strerror}; free space or choose another output") from error


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise ConversionError(f"{target} exists; choose another output or remove it first")


def _make_partial(partial: Path) -> None:
    """Make the folder that a target is written in, or take over the one that a killed process left."""
    if partial.is_symlink() or (partial.exists() and not (partial / LOCK).is_file()):
        raise ConversionError(f"{partial} exists and is not what a conversion left; move it away or choose another output")
    if not partial.exists():
        partial.mkdir(parents=True)
        (partial / LOCK).touch()


def _claim(lock: int, target: Path) -> None:
    """Take the lock, which a process loses when it dies, or refuse."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConversionError(f"{target} is being written by another process; wait for it or choose another output") from None


def _empty(partial: Path) -> None:
    for leftover in partial.iterdir():
        if leftover.name != LOCK:
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()


def _check_space(target: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if num_bytes and free < num_bytes * 1.01 + _SPARE_BYTES:
        raise ConversionError(
            f"{target.parent} has {free / 1e9:.3f} GB free, {target.name} takes {num_bytes / 1e9:.3f}; "
            "free space or choose another output"
        )


class OutFile:
    """A new file, written from front to back while the next bytes are made, around the page cache where the file system can.

    Use it as a context manager: on leaving, its bytes are on the disk and not in memory, so that what is read back afterwards
    comes from there. With `hashed`, `sha256` is that of the bytes so far.
    """

    def __init__(self, path: Path, *, hashed: bool = False) -> None:
        self.path = path
        self.size = 0
        self._sha256 = hashlib.sha256() if hashed else None
        self._buffers = [mmap.mmap(-1, _BUFFER_BYTES) for _ in range(2)]  # aligned to pages, as direct writes need it
        self._filled = 0
        self._patches: list[tuple[int, bytes]] = []
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._file = -1

    def __enter__(self) -> Self:
        """Create the file. Raises OSError when it exists or cannot be made."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._set_direct(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close, flushed unless an error is on its way."""
        try:
            if kind is None:
                self._flush()
                self._wait()
                self._finish()
        finally:
            self._writer.shutdown()
            os.close(self._file)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, of a file that is hashed."""
        return self._sha256.hexdigest() if self._sha256 else ""

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes. Raises OSError naming the file when the disk is full."""
        rest = memoryview(content).cast("B")
        if self._sha256:
            self._sha256.update(rest)
        while rest:
            count = min(len(rest), _BUFFER_BYTES - self._filled)
            self._buffers[0][self._filled : self._filled + count] = rest[:count]
            self._filled, self.size, rest = self._filled + count, self.size + count, rest[count:]
            if self._filled == _BUFFER_BYTES:
                self._flush()

    def patch(self, offset: int, content: bytes) -> None:
        """Have bytes before the end overwritten on leaving, of a file that is not hashed."""
        if self._sha256:
            raise ValueError(f"{self.path} is hashed as it is written; nothing before its end can change")
        self._patches.append((offset, content))

    def _flush(self) -> None:
        """Hand the buffer to the writer, once it has written the other, and go on with that."""
        self._wait()
        self._writing = self._writer.submit(self._write_out, self._buffers[0], self._filled, self.size - self._filled)
        self._buffers.reverse()
        self._filled = 0

    def _wait(self) -> None:
        if self._writing:
            self._writing.result()

    def _write_out(self, buffer: mmap.mmap, num_bytes: int, start: int) -> None:
        """Write whole pages; what is too much at the end of the file is cut off later."""
        rest = memoryview(buffer)[: -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE]
        try:
            while rest:
                try:
                    count = os.pwrite(self._file, rest, start)
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._set_direct(False):
                        raise
                    continue
                rest, start = rest[count:], start + count
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _finish(self) -> None:
        self._set_direct(False)
        os.ftruncate(self._file, self.size)
        for offset, content in self._patches:
            os.pwrite(self._file, content, offset)
        os.fsync(self._file)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def _set_direct(self, wanted: bool) -> bool:
        """Turn direct writing on or off; whether that changed anything. Some file systems say no now, others at the first write."""
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        direct = getattr(os, "O_DIRECT", 0)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | direct if wanted else flags & ~direct)
        except OSError:
            return False
        return bool(flags & direct) != wanted


def flush_directory(directory: Path, *, files: bool = True) -> None:
    """Return once the directory's entries and, unless told otherwise, all that lies below it are on the disk."""
    for path in (*(directory.rglob("*") if files else ()), directory):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConversionError when it is missing, damaged or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}; give a directory that holds {path.name}") from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is no JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds no JSON object; copy it again")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON object."""
    path.write_text(to_json(content), encoding="utf-8")


def to_json(content: dict[str, Any]) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def plain_file(directory: Path, name: object, *, named_by: str) -> Path:
    """The file `name` of `directory`. Raises ConversionError when it is not a plain name, or no such file is there."""
    if not isinstance(name, str) or not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ConversionError(f"{directory / named_by} names {name!r}, which is no file of the folder; do not trust this folder")
    path = directory / name
    try:
        found = path.is_file()
    except OSError:  # a name that is too long
        found = False
    if not found:
        raise ConversionError(f"{path} is missing, though {named_by} names it; copy it again")
    return path
