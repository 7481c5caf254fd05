"""Where this process stands among the others, and starting the others: the one file that reads the launcher's environment.

Three ways to start, one command: torchrun sets RANK and WORLD_SIZE; srun sets SLURM_PROCID for each task; without either,
`start_local` starts the processes that the layout needs on this machine. Imports no torch, so the parent stays light.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from megatron_poro.engine.forking import ForkedRank, start_forks
from megatron_poro.engine.heartbeat import HEARTBEATS
from megatron_poro.errors import LaunchError

LISTEN_FD = "PORO_LISTEN_FD"
LOCAL = "PORO_LOCAL_LAUNCH"
FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_SECONDS = 5.0
KILL_SECONDS = 10.0
POLL_SECONDS = 0.02

Process: TypeAlias = "subprocess.Popen[bytes] | ForkedRank"


@dataclass(frozen=True)
class World:
    """This process among all: `address` and `port` are where rank 0 listens; `listen_fd` is its inherited socket, if any."""

    rank: int
    size: int
    local_rank: int
    address: str = "127.0.0.1"
    port: int = 0
    listen_fd: int | None = None
    is_local: bool = False


def read_world(environment: Mapping[str, str]) -> World | None:
    """This process's place according to torchrun or srun; None when neither started it.

    Raises LaunchError when the launcher's variables make no sense.
    """
    try:
        world = _read_variables(environment)
    except (KeyError, ValueError) as error:
        raise LaunchError(
            f"the launcher's environment cannot be read: {error}; unset RANK and WORLD_SIZE to start without one"
        ) from None
    if world is not None and not 0 <= world.rank < world.size:
        raise LaunchError(f"rank {world.rank} does not fit a world of {world.size} processes; check RANK and WORLD_SIZE")
    return world


def _read_variables(environment: Mapping[str, str]) -> World | None:
    if "RANK" in environment and "WORLD_SIZE" in environment:
        fd = environment.get(LISTEN_FD)
        return World(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            address=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=int(environment.get("MASTER_PORT", "29500")),
            listen_fd=int(fd) if fd else None,
            is_local=LOCAL in environment,
        )
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _read_slurm(environment)
    return None


def start_name(environment: Mapping[str, str]) -> tuple[str, bool]:
    """A name that all processes of one start share under torchrun or srun, and whether no other start can have it."""
    variables = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    parts = [environment.get(name, "0") for name in (*variables, "MASTER_PORT")]
    return re.sub(r"[^A-Za-z0-9.-]", "_", "-".join(parts)), "RANK" not in environment


def process_began() -> float:
    """When this process began, in seconds since 1970: what Python has loaded since then is part of a start."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # starttime, proc(5)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def job_of(environment: Mapping[str, str]) -> tuple[str, int]:
    """The Slurm job that this process belongs to, as a person calls it (12 or 12_3; empty outside of one), and its requeues."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment.get("SLURM_JOB_ID", "")
    return name, int(environment.get("SLURM_RESTART_COUNT", "0"))


def _read_slurm(environment: Mapping[str, str]) -> World:
    """srun's variables; the first node of the step serves as the meeting point, the port follows from the job id."""
    hosts = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "localhost"))
    port = 20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000
    return World(
        rank=int(environment["SLURM_PROCID"]),
        size=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        address=environment.get("MASTER_ADDR", first_host(hosts)),
        port=int(environment.get("MASTER_PORT", port)),
    )


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: `nid[000012-000015,000020],login1` -> `nid000012`."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\])?([^,]*)", nodelist)
    if not match:
        raise LaunchError(f"SLURM_STEP_NODELIST: cannot read a host name from {nodelist!r}; set MASTER_ADDR")
    return "".join(part or "" for part in match.groups())


def export_world(world: World) -> None:
    """Tell torch.distributed's own environment reader where rank 0 is, for the launchers that do not (srun)."""
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        MASTER_ADDR=world.address,
        MASTER_PORT=str(world.port),
    )


@contextlib.contextmanager
def _listen() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        yield listener


class Watch:
    """What a launcher does while its ranks run. This one only says which of them was killed; `training.supervisor` does more."""

    grace_seconds = GRACE_SECONDS
    """How long ranks that are asked to end may take."""
    ranks_listen = False
    """Whether ranks begin with the stop signals held back, so that none is lost before they unblock and take them."""

    def environment(self) -> dict[str, str]:
        """What the ranks get beside their place in the world."""
        return {}

    def started(self, pids: Mapping[int, int]) -> None:
        """The ranks run; process id of each."""

    def look(self) -> int | None:
        """Called many times a second; an exit code ends all ranks."""
        return None

    def ended(self, rank: int, code: int) -> None:
        """Rank `rank` ended with a code that is none of the good ones; below 0 it is a signal's."""
        if code < 0:
            print(f"error: rank {rank} was ended by {signal.Signals(-code).name}; the others are stopped", file=sys.stderr)


def start_local(
    command: Sequence[str],
    num_processes: int,
    *,
    good_codes: frozenset[int] = frozenset({0}),
    watch: Watch | None = None,
    forks: bool = False,
) -> int:
    """Run `command` as `num_processes` ranks on this machine; returns the largest exit code when all ended well.

    With `forks` it is a command that calls `become_ranks`, and is started once. When a rank ends with another than a good code the
    others are ended within seconds and its exit code is returned; a signal gives 128 + its number. Signals to this process go on to
    the ranks. Rank 0 inherits a listening socket, so no port is guessed.
    """
    watch = watch or Watch()

    def start() -> dict[int, Process]:
        with _listen() as listener:
            environments = [_environment_of(rank, num_processes, listener, watch) for rank in range(num_processes)]
            if forks and num_processes > 1:
                found = start_forks(command, environments, fds=[listener.fileno()])
                return dict(enumerate(found)) if isinstance(found, list) else {0: found}
            return {rank: _start_rank(command, environments[rank], listener) for rank in range(num_processes)}

    return _guard(start, good_codes, watch)


def start_child(command: Sequence[str], world: World, *, good_codes: frozenset[int], watch: Watch) -> int:
    """Run `command` as the rank that torchrun or srun meant this process to be; returns its exit code as `start_local` does."""
    fds = (world.listen_fd,) if world.listen_fd is not None else ()

    def start() -> dict[int, Process]:
        environment = {**os.environ, **watch.environment()}
        return {world.rank: subprocess.Popen(command, env=environment, pass_fds=fds, start_new_session=True)}

    return _guard(start, good_codes, watch)


@contextlib.contextmanager
def _hold_signals(numbers: Iterable[int]) -> Iterator[None]:
    """Signals to this process wait until the block is left; processes that it starts begin with them waiting."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _guard(start: Callable[[], Mapping[int, Process]], good_codes: frozenset[int], watch: Watch) -> int:
    """Start the ranks, forward signals to them until they ended, and leave none behind."""
    with _hold_signals(FORWARDED_SIGNALS if watch.ranks_listen else ()):
        processes = start()
        forward = {number: signal.signal(number, _forward_to(processes.values())) for number in FORWARDED_SIGNALS}
    try:
        watch.started({rank: process.pid for rank, process in processes.items()})
        return _wait(processes, good_codes, watch)
    finally:
        for number, handler in forward.items():
            signal.signal(number, handler)
        _end(processes.values(), watch.grace_seconds)


def _environment_of(rank: int, size: int, listener: socket.socket, watch: Watch) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // size)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(listener.getsockname()[1]),
        LOCAL: "1",
        **watch.environment(),
    }
    if rank == 0:
        environment[LISTEN_FD] = str(listener.fileno())
    return environment


def _start_rank(command: Sequence[str], environment: Mapping[str, str], listener: socket.socket) -> "subprocess.Popen[bytes]":
    fds = (listener.fileno(),) if LISTEN_FD in environment else ()
    # A session of their own: Ctrl-C reaches the ranks once, through this process.
    return subprocess.Popen(command, env=environment, pass_fds=fds, start_new_session=True)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, so that no rank outlives a killed launcher."""
    if not {LOCAL, HEARTBEATS} & os.environ.keys() or not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent or parent == 1:
        os._exit(1)


def _forward_to(processes: Iterable[Process]) -> "signal._HANDLER":
    def forward(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    return forward


def _wait(processes: Mapping[int, Process], good_codes: frozenset[int], watch: Watch) -> int:
    """The largest code once all ended well, the exit code of the first that did not, or the watch's."""
    while True:
        codes = {rank: process.poll() for rank, process in processes.items()}
        for rank, code in codes.items():
            if code is not None and code not in good_codes:
                watch.ended(rank, code)
                return code if code > 0 else 128 - code
        if None not in codes.values():
            return max(code for code in codes.values() if code is not None)
        verdict = watch.look()
        if verdict is not None:
            return verdict
        time.sleep(POLL_SECONDS)


def _end(processes: Iterable[Process], grace_seconds: float) -> None:
    """End what still runs: first asked, where there is time for it, then killed."""
    running = [process for process in processes if process.poll() is None]
    if grace_seconds:
        for process in running:
            process.terminate()
    deadline = time.monotonic() + grace_seconds
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
            continue
        process.kill()
        try:
            process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"error: process {process.pid} cannot be killed; a file system or driver holds it", file=sys.stderr)
