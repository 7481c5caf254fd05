"""Slurm's commands: lists of words, patience while the controller does not answer, and text as 22.05 to 24.05 print it."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_poro.errors import LaunchError

PATIENCE_SECONDS = 120.0
"""How long a command is tried again while the controller cannot be reached: a restart of it takes about a minute."""
PAUSE_SECONDS = 2.0
UNREACHABLE = re.compile(
    r"unable to contact slurm controller|connection refused|socket timed out|timed out|zero bytes were transmitted|"
    r"communication connection failure|slurmctld.*(not responding|down)|Resource temporarily unavailable",
    re.IGNORECASE,
)


class SlurmError(LaunchError):
    """A Slurm command that failed; the message carries what it said."""


class SlurmUnreachableError(SlurmError):
    """The controller did not answer for as long as was waited."""


@dataclass(frozen=True)
class QueuedJob:
    """One job, or element of an array, in the queue. `job` is its name for people, 12 or 12_3; times are as Slurm prints them."""

    job: str
    state: str
    reason: str
    name: str
    time_used: str
    time_left: str
    nodes: str
    start: str
    comment: str

    @property
    def is_running(self) -> bool:
        """Whether it has nodes."""
        return self.state in ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED")


def has_slurm() -> bool:
    """Whether sbatch is there."""
    return shutil.which("sbatch") is not None


def call(*words: str, patience_seconds: float = PATIENCE_SECONDS) -> str:
    """Run a Slurm command; returns what it printed.

    Raises SlurmUnreachableError when the controller stayed away for `patience_seconds`, SlurmError when the command failed.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        said, is_ok = _try(words)
        if is_ok:
            return said
        if not UNREACHABLE.search(said):
            raise SlurmError(f"{words[0]}: {said}")
        if time.monotonic() > deadline:
            raise SlurmUnreachableError(f"{words[0]}: the Slurm controller does not answer: {said}; try again later")
        time.sleep(PAUSE_SECONDS)


def _try(words: Sequence[str]) -> tuple[str, bool]:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "SLURM_TIME_FORMAT": "%s"}
        )
    except FileNotFoundError:
        raise SlurmError(f"{words[0]}: not installed here; run this on a node that has Slurm's commands") from None
    except subprocess.TimeoutExpired:
        return f"{words[0]} timed out", False
    said = done.stdout if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip())
    return said, done.returncode == 0


def queued(ids: Sequence[str], *, patience_seconds: float = PATIENCE_SECONDS) -> list[QueuedJob]:
    """What the queue holds of these jobs and arrays, element by element; nothing for those that are gone."""
    if not ids:
        return []
    shape = "|".join(("%i", "%T", "%r", "%j", "%M", "%L", "%N", "%S", "%k"))
    try:
        words = ("squeue", "--noheader", "--array", "--states=all", "--jobs", ",".join(ids), "--format", shape)
        lines = call(*words, patience_seconds=patience_seconds).splitlines()
    except SlurmUnreachableError:
        raise
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    return [job for line in lines if (job := _read_line(line)) and job.state in _IN_QUEUE]


_IN_QUEUE = frozenset({"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STOPPED"})


def _read_line(line: str) -> QueuedJob | None:
    parts = line.split("|", 8)
    return QueuedJob(*parts) if len(parts) == 9 else None


def show_job(job: str) -> dict[str, str]:
    """`scontrol show job` of one job as key and value; empty when Slurm forgot it."""
    try:
        said = call("scontrol", "show", "job", "-o", job)
    except SlurmUnreachableError:
        raise
    except SlurmError:
        return {}
    return dict(re.findall(r"(\S+?)=(\S*)", said.splitlines()[0]))


def expand_nodes(nodelist: str) -> list[str]:
    """The nodes of a Slurm node list, one by one."""
    if not nodelist or nodelist in ("(null)", "None"):
        return []
    return call("scontrol", "show", "hostnames", nodelist).split()


def node_states(partition: str) -> dict[str, str]:
    """The state of each node, of one partition when its name is given: idle, allocated, mixed, down, drained, ..."""
    words = ["sinfo", "--noheader", "--Node", "--format", "%N|%T", *(["--partition", partition] if partition else [])]
    return dict(line.split("|", 1) for line in call(*words).splitlines() if "|" in line)


def is_gone(state: str) -> bool:
    """Whether a node in this state takes no job: down, drained, failing, or not answering (`*`)."""
    return state.endswith("*") or state.rstrip("*~#!%$@^-").startswith(("down", "drain", "fail", "unknown", "maint", "power"))
