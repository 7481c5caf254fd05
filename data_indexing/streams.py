"""Bytes on their way to the disk: under another name until they are whole, at the disk's rate, hashed meanwhile."""

import errno
import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, TypeVar

from isal import isal_zlib

from data_indexing.errors import DataError

Item = TypeVar("Item")

Buffer = bytes | bytearray | memoryview

# Threads that wait for each other at every piece lose time on a busy machine, so they may be some pieces apart.
HASHES_BEHIND = 6
_WINDOW_BYTES = 64 << 20
# Below this, handing the bytes to another thread costs more than hashing them.
_SMALL_BYTES = 1 << 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)


def partial_path(path: Path) -> Path:
    """Name of a file until it is whole."""
    return path.with_name(f"{path.name}.partial")


def open_partial(path: Path) -> FileIO:
    """Open PATH.partial, empty and held; what a killed run left there is overwritten, one still at work is an error."""
    temporary = partial_path(path)
    while True:
        try:
            stream = FileIO(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise DataError(f"{temporary}: {error.strerror}; choose another output") from None
        if _hold(stream, temporary):
            stream.truncate(0)
            return stream
        stream.close()


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn what a full disk, a quota or a size limit does to the writes in the block into an error of the user."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(f"{path}: {error.strerror}; nothing was written, free space or choose another output") from None
        raise


def run_ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """What a generator yields, run on a thread of its own up to `depth` items before they are asked for."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, None) for _ in range(depth))
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item


class BackgroundHash:
    """CRC-32 of a stream as zlib has it, and its SHA-256, on a thread of its own while the caller goes on with the same bytes.

    The CRC-32 is computed at once, as it takes less time than a copy of the bytes.
    """

    def __init__(self, *, with_sha256: bool = True) -> None:
        """Start no thread yet."""
        self.crc32 = 0
        self._with_sha256 = with_sha256
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def update(self, data: Buffer) -> None:
        """Take in bytes that must stay as they are until HASHES_BEHIND further calls have returned."""
        self.crc32 = isal_zlib.crc32(data, self.crc32)
        if not self._with_sha256:
            return
        if memoryview(data).nbytes < _SMALL_BYTES and not self._pending:
            self._digest.update(data)
            return
        self._pending.append(self._pool.submit(self._digest.update, data))
        if len(self._pending) > HASHES_BEHIND:
            self._pending.popleft().result()

    def wait(self) -> None:
        """Return once all bytes so far are taken in."""
        while self._pending:
            self._pending.popleft().result()

    def sha256(self) -> str:
        """SHA-256 of all bytes so far, in hexadecimal."""
        self.wait()
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


class HashedOutput:
    """A file that is hashed while it is written, and whose bytes start towards the disk at once.

    A file that waits in the page cache until its fsync takes up to four times as long.
    """

    def __init__(self, stream: FileIO) -> None:
        """Write to `stream`, which stays the caller's."""
        self._stream = stream
        self._hash = BackgroundHash()
        self._num_started = 0
        self.num_bytes = 0

    def write(self, data: Buffer) -> None:
        """Append bytes that must stay as they are until HASHES_BEHIND further calls have returned."""
        self._hash.update(data)
        write_all(self._stream, data)
        self.num_bytes += memoryview(data).nbytes
        if self.num_bytes - self._num_started >= _WINDOW_BYTES:
            # The advice starts writing what is dirty and drops what is clean: this window, and the one before it.
            start = max(0, self._num_started - _WINDOW_BYTES)
            os.posix_fadvise(self._stream.fileno(), start, self.num_bytes - start, os.POSIX_FADV_DONTNEED)
            self._num_started = self.num_bytes

    def seal(self) -> tuple[str, int]:
        """Bring everything to the disk; returns the SHA-256 and the CRC-32 of what was written."""
        sync(self._stream)
        return self._hash.sha256(), self._hash.crc32

    def close(self) -> None:
        """End the hashing; the stream stays open."""
        self._hash.close()


def sync(stream: IO[bytes]) -> None:
    """Return once everything written is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def write_all(stream: FileIO, data: Buffer) -> None:
    """Write to an unbuffered file, which keeps nothing back to fail with when it is closed."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[stream.write(rest) :]


def read_exactly(file: int, buffer: memoryview, offset: int) -> int:
    """Fill the buffer from an open file, in as many system calls as it takes; less than its size means the file ended."""
    done = 0
    while done < len(buffer):
        count = os.preadv(file, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def _hold(stream: FileIO, temporary: Path) -> bool:
    """Lock an open file; False where whoever held it before has renamed or removed it meanwhile."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise DataError(f"{temporary}: another process is writing it; wait for it or choose another output") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        return os.path.samestat(os.fstat(stream.fileno()), temporary.stat())
    except FileNotFoundError:
        return False
