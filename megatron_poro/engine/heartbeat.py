"""A rank's sign of life: one small file per rank in memory of its node, written by the rank and read by its supervisor.

The rank writes into a mapped file, without a system call, so a beat costs about a microsecond and no file system can hold it up.
Imports no torch.
"""

import contextlib
import fcntl
import mmap
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HEARTBEATS = "PORO_HEARTBEATS"
"""Environment variable of a rank: the directory that its supervisor made for it."""
LAYOUT = struct.Struct("<qqqqqddd")
PREFIX = "poro-heartbeats-"
STALE_SECONDS = 60.0


class Beat(NamedTuple):
    """Step (from 1; 0 before the first), microbatch of it, number of a `Phase`, number of the beat, seconds since 1970, silence in
    seconds that counts as a hang (0: none does), and the slowest recent step in seconds."""

    step: int
    microbatch: int
    phase: int
    sequence: int
    time: float
    limit_seconds: float
    slowest_seconds: float


class BeatFile:
    """What a rank writes its beats to."""

    def __init__(self, path: Path) -> None:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(bytes(LAYOUT.size))
        with open(partial, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), LAYOUT.size)
        self._pid = os.getpid()
        partial.rename(path)

    def write(self, beat: Beat) -> None:
        """Replace the beat in the file."""
        LAYOUT.pack_into(self._memory, 0, self._pid, *beat)


def read_beat(path: Path) -> tuple[int, Beat] | None:
    """Process id and last beat of a rank; None before its first."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) != LAYOUT.size:
        return None
    pid, *rest = LAYOUT.unpack(content)
    return (pid, Beat(*rest)) if pid else None


def beat_path(directory: Path, rank: int) -> Path:
    """Where rank `rank` beats."""
    return directory / f"rank_{rank:05d}"


def stacks_path(directory: Path, rank: int) -> Path:
    """Where SIGQUIT makes rank `rank` write its Python stacks."""
    return directory / f"stacks_{rank:05d}"


@contextlib.contextmanager
def heartbeat_directory() -> Iterator[Path]:
    """A private directory in memory where there is one; it goes when the supervisor does, or at a later start on this node."""
    memory = Path("/dev/shm")  # noqa: S108 - node-local memory on Linux
    parent = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    _remove_stale(parent)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(handle)
        shutil.rmtree(directory, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    """Remove what killed supervisors left: theirs are old and nobody holds the lock."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid != os.getuid() or time.time() - path.stat().st_mtime < STALE_SECONDS:
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)
