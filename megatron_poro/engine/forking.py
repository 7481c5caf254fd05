"""Ranks on this machine as forks of one process that has loaded everything: what they load, they load once.

Loading torch and megatron-core takes two seconds of a core, for each rank. The launcher starts one process, which loads and forks;
it then ends, and the kernel gives its children to the launcher, as those that it started itself. Not where there is an accelerator:
a device must not be touched before a fork.
"""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

FORKS = "PORO_FORKS"
"""A file descriptor: where the process that is to fork reads its order, and writes the ranks' process ids."""
DEVICES = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
_SET_CHILD_SUBREAPER = 36


class ForkedRank:
    """A rank, with the part of Popen that a launcher needs. It must be a child of this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, a signal's below 0; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float) -> int:
        """The exit code. Raises TimeoutExpired when it runs for longer."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"rank of process id {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal unless it ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def can_fork() -> bool:
    """Whether ranks may be forks: on Linux, without an accelerator."""
    return sys.platform.startswith("linux") and not any(device.exists() for device in DEVICES)


def start_forks(
    command: Sequence[str], environments: Sequence[Mapping[str, str]], fds: Sequence[int]
) -> "list[ForkedRank] | subprocess.Popen[bytes]":
    """Start `command`, which calls `become_ranks`, and let it fork a rank for each of the environments.

    The first rank gets the open files `fds`. Returns the ranks; where the process ended before there were any, that.
    """
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    order = {"launcher": os.getpid(), "fds": list(fds), "environments": list(map(dict, environments))}
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(order).encode())
        file.flush()
        file.seek(0)
        environment = {**environments[0], FORKS: str(file.fileno())}
        process = subprocess.Popen(command, env=environment, pass_fds=(*fds, file.fileno()), start_new_session=True)
        process.wait()
        file.seek(0)
        answer = json.loads(file.read())
    return [ForkedRank(pid) for pid in answer["pids"]] if "pids" in answer else process


def become_ranks(load: Callable[[], object]) -> None:
    """In the process that `start_forks` started: load, fork, and end. Returns in every rank, with the rank's environment."""
    with open(int(os.environ.pop(FORKS)), "r+b") as file:
        order = json.loads(file.read())
        load()
        gc.freeze()  # what was loaded is not looked through in every rank, and stays shared
        own, pids = os.getpid(), []
        for rank, environment in enumerate(order["environments"]):
            pid = os.fork()
            if not pid:
                os.setsid()
                for fd in order["fds"] if rank else ():
                    os.close(fd)
                os.environ.clear()
                os.environ.update(environment)
                _wait_for_launcher(own, order["launcher"])
                return
            pids.append(pid)
        file.seek(0)
        file.write(json.dumps({"pids": pids}).encode())
        file.truncate()
    os._exit(0)


def _wait_for_launcher(before: int, launcher: int) -> None:
    """Return once the launcher is the parent; without one there is nothing to be a rank of."""
    while os.getppid() == before:
        time.sleep(0.001)
    if os.getppid() != launcher:
        os._exit(1)
