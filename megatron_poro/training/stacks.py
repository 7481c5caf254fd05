"""Python stacks of ranks that do not answer: SIGQUIT makes a rank write them, also when it is stuck in C. Imports no torch."""

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from megatron_poro.engine.heartbeat import beat_path, stacks_path
from megatron_poro.training.hangs import BLOCKED, ENDED, RUNNING, STOPPED

WRITE_SECONDS = 3.0
SETTLED_SECONDS = 0.2
STATES = {"T": STOPPED, "t": STOPPED, "D": BLOCKED, "Z": ENDED, "X": ENDED}


def process_state(pid: int) -> str:
    """What the kernel says of a process: one of the states of `hangs`. Without /proc every process counts as running."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ENDED if Path("/proc/self").exists() else RUNNING
    except OSError:
        return RUNNING
    return STATES.get(status.rpartition(")")[2].split()[0], RUNNING)


def collect_stacks(directory: Path, pids: Mapping[int, int]) -> dict[int, str]:
    """The stacks of ranks by rank, or why there are none; `directory` is where they beat."""
    sizes, told = {}, {}
    for rank, pid in pids.items():
        state = process_state(pid)
        if state in (STOPPED, ENDED):
            told[rank] = f"no stacks: the process is {state}\n"
        elif not beat_path(directory, rank).exists():
            told[rank] = "no stacks: the process did not come so far as to register for them\n"
        else:
            sizes[rank] = _size(stacks_path(directory, rank))
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGQUIT)
    deadline = time.monotonic() + WRITE_SECONDS
    for rank, before in sizes.items():
        told[rank] = _read_written(stacks_path(directory, rank), before, deadline)
        told[rank] = told[rank] or f"no stacks: the process is {process_state(pids[rank])} and did not write them\n"
    return told


def _read_written(path: Path, before: int, deadline: float) -> str:
    """What was added to the file, once it no longer grows."""
    size, since = before, time.monotonic()
    while time.monotonic() < deadline:
        now = _size(path)
        if now != size:
            size, since = now, time.monotonic()
        elif size > before and time.monotonic() - since > SETTLED_SECONDS:
            break
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        return path.read_bytes()[before:].decode(errors="replace")
    return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
