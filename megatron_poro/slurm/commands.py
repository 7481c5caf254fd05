"""Slurm's commands: lists of words, patience while the controller does not answer, and text as 22.05 to 24.05 print it."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_poro.errors import LaunchError

PATIENCE_SECONDS = 120.0
"""How long a command is tried again while the controller cannot be reached: a restart of it takes about a minute."""
PAUSE_SECONDS = 2.0
COMMAND_SECONDS = 60.0
"""How long one command may take."""
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
        return self.state in _HAS_NODES


_HAS_NODES = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"},
)
_ENDED = frozenset(
    {
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"),
        *("REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"),
    }
)
"""A state that is none of these is in the queue: a job whose reservation was deleted (RESV_DEL_HOLD) still waits."""
_ANSWERS_OTHERWISE = ("SQUEUE_", "SINFO_", "SCONTROL_")
"""Variables that change what a command answers: SQUEUE_PARTITION hides elements."""
_KEPT_OF_SLURM = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_MPI_TYPE"})


def has_slurm() -> bool:
    """Whether sbatch is there."""
    return shutil.which("sbatch") is not None


def call(*words: str, patience_seconds: float = PATIENCE_SECONDS) -> str:
    """Run a Slurm command; returns what it printed.

    Raises SlurmUnreachableError when the controller stayed away for `patience_seconds`, SlurmError when the command failed.
    """
    deadline, is_told = time.monotonic() + patience_seconds, False
    while True:
        said, is_ok = _try(words)
        if is_ok:
            return said
        if not UNREACHABLE.search(said):
            raise SlurmError(f"{words[0]}: {said.removeprefix(f'{words[0]}: ').removeprefix('error: ')}")
        if time.monotonic() > deadline:
            raise SlurmUnreachableError(f"{words[0]}: the Slurm controller does not answer: {said}; try again later")
        if not is_told and patience_seconds > PAUSE_SECONDS * 2:
            is_told = True
            print(f"Slurm does not answer {words[0]}; trying for {patience_seconds:.0f} s", file=sys.stderr, flush=True)
        time.sleep(PAUSE_SECONDS)


def _try(words: Sequence[str]) -> tuple[str, bool]:
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=COMMAND_SECONDS,
            env=_environment(words[0]),
        )
    except FileNotFoundError:
        raise SlurmError(f"{words[0]}: not installed here; run this on a node that has Slurm's commands") from None
    except OSError as error:
        raise SlurmError(f"{words[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        return f"{words[0]} timed out", False
    said = done.stdout if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip())
    return said, done.returncode == 0


def _environment(program: str) -> dict[str, str]:
    """What a command sees. Of a job that `poro launch` is called inside, nothing reaches the one that it submits: srun there would
    take its counts, memory and binding for the new job's.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_ANSWERS_OTHERWISE)}
    if program != "sbatch":
        return {**kept, "SLURM_TIME_FORMAT": "%s"}
    if "SLURM_JOB_ID" not in kept:
        return kept
    of_job = ("SLURM_", "SLURMD_", "SRUN_")
    return {name: value for name, value in kept.items() if name in _KEPT_OF_SLURM or not name.startswith(of_job)}


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
    return [job for line in lines if (job := _read_line(line)) and job.state not in _ENDED]


def launched_from(folder: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> list[str]:
    """The jobs and arrays in the queue whose working directory is `folder`, also those whose number nobody could note."""
    words = ("squeue", "--noheader", "--me", "--states=all", "--format", "%F|%T|%Z")
    lines = [line.split("|", 2) for line in call(*words, patience_seconds=patience_seconds).splitlines() if line.count("|") >= 2]
    return sorted({number for number, state, directory in lines if directory == str(folder) and state not in _ENDED})


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
    return dict(re.findall(r"(\S+?)=(\S*)", said.partition("\n")[0]))


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
