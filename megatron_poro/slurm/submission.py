"""Giving Slurm a script, once: before a submission whose answer was lost is repeated, the queue is asked whether it has it."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.slurm import commands
from megatron_poro.slurm.commands import SlurmError, SlurmUnreachableError, call, has_slurm, launched_from


def submit_script(words: Sequence[str], logs: Path) -> str:
    """The number of the job or array that `words`, sbatch with --chdir=`logs`, make.

    Raises SlurmUnreachableError when the controller stayed away, SlurmError when Slurm refused or its answer names no job.
    """
    before = launched_from(logs) if has_slurm() else []
    deadline = time.monotonic() + commands.PATIENCE_SECONDS
    while True:
        problem: SlurmError
        try:
            said = call(*words, patience_seconds=0.0)
            if number := _number(said):
                return number
            problem = SlurmError(
                f"sbatch: its answer names no job: {said.strip()[:200]!r}; `squeue --me` shows whether there is one"
            )
        except SlurmUnreachableError as error:
            problem = error
        time.sleep(commands.PAUSE_SECONDS)
        if found := [number for number in launched_from(logs) if number not in before]:
            return found[0]
        if time.monotonic() > deadline or not isinstance(problem, SlurmUnreachableError):
            raise problem


def _number(said: str) -> str:
    """The number that `sbatch --parsable` prints (12, or 12;cluster) after what a site lets it print before; empty without one."""
    last = said.strip().rpartition("\n")[2]
    match = re.fullmatch(r"(\d+)(;.*)?", last.strip())
    return match[1] if match else ""
