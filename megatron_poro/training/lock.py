"""Locks of a run directory: one start, one launch at a time. The kernel lets go of them when their holder ends, however it ends."""

import contextlib
import fcntl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_poro.errors import LaunchError

LOCK_PATIENCE_SECONDS = 10.0


@contextlib.contextmanager
def lock_run(run_directory: Path) -> Iterator[None]:
    """Hold the run directory: a second start waits a little for a dying first one, then is refused."""
    otherwise = f"{run_directory}: another process trains this run; wait for it, or give another run_directory"
    with hold_lock(run_directory / "lock", otherwise):
        yield


@contextlib.contextmanager
def hold_lock(path: Path, otherwise: str) -> Iterator[None]:
    """Hold the lock of that file. Raises LaunchError with `otherwise` when somebody else does not let go of it soon."""
    try:
        path.parent.mkdir(exist_ok=True)
        lock = open(path, "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}") from None
    with lock:
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LaunchError(otherwise) from None
                time.sleep(0.1)
            except OSError as error:  # a file system without locks (some Lustre mounts)
                print(f"warning: {path} cannot be locked ({error}); do not start the run twice", file=sys.stderr)
                break
        yield
