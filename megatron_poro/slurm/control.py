"""`poro stop` and `poro cancel`: what a person wants of a run that was launched."""

from pathlib import Path

from megatron_poro.errors import LaunchError
from megatron_poro.slurm.commands import call, queued
from megatron_poro.slurm.queue import cancel_waiting, with_ids
from megatron_poro.slurm.records import Job, load_job, note
from megatron_poro.training.signals import STOP


def stop(directory: Path) -> str:
    """Let the running element save and end, and cancel those that wait; returns what was done, in words."""
    job = _launched(directory)
    note(directory, "stop")
    cancelled = cancel_waiting(job)
    running = [each.job for each in queued(job.ids) if each.is_running]
    if not running and job.mode != "local":
        return f"{cancelled} elements that waited are cancelled; none was running"
    (directory / STOP).touch()
    what = f"element {running[0]}" if running else "the run"
    return f"{what} saves and ends after its step; {cancelled} elements that waited are cancelled"


def cancel(directory: Path) -> str:
    """Cancel all elements, the running one too; returns what was done, in words."""
    job = _launched(directory)
    there = queued(job.ids)
    note(directory, "cancel")
    if not there:
        return "nothing of it is in the queue"
    call("scancel", *sorted({each.job.partition("_")[0] for each in there}))  # those that Slurm forgot are an error to scancel
    return f"{len(there)} elements are cancelled; `poro launch` goes on from the newest checkpoint"


def _launched(directory: Path) -> Job:
    job = load_job(directory)
    if job is None:
        raise LaunchError(
            f"{directory}: nothing was launched from here; `touch {directory / STOP}` stops a run that `poro train` started"
        )
    return with_ids(job)
