"""The lock of a run directory: one start at a time."""

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
    with open(run_directory / "lock", "w") as lock:
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"{run_directory}: another process trains this run; wait for it, or give another run_directory"
                    ) from None
                time.sleep(0.1)
            except OSError as error:  # a file system without locks (some Lustre mounts)
                print(f"warning: {run_directory} cannot be locked ({error}); do not start the run twice", file=sys.stderr)
                break
        yield
