"""`poro stop` and `poro cancel`: what a person wants of a run that was launched."""

from pathlib import Path

from megatron_poro.errors import LaunchError
from megatron_poro.slurm.commands import call, queued
from megatron_poro.slurm.queue import cancel_waiting, with_ids
from megatron_poro.slurm.records import Job, count, load_job, note
from megatron_poro.training.signals import STOP


def stop(directory: Path) -> str:
    """Let the running element save and end, and cancel those that wait; returns what was done, in words.

    The file comes first: while Slurm does not answer, the run is stopped all the same.
    """
    job = _launched(directory)
    note(directory, "stop")
    (directory / STOP).touch()
    cancelled = count(cancel_waiting(job), "element")
    running = [each.job for each in queued(job.ids) if each.is_running]
    if not running and job.mode != "local":
        (directory / STOP).unlink(missing_ok=True)
        return f"none was running; {cancelled} that waited cancelled"
    what = f"element {running[0]}" if running else "the run"
    return f"{what} saves and ends after its step; {cancelled} that waited cancelled"


def cancel(directory: Path) -> str:
    """End all elements at once, the running one too, without a save; returns what was done, in words."""
    job = _launched(directory)
    if job.mode == "local":
        raise LaunchError(f"{directory}: runs without Slurm, where `poro launch` was called; Ctrl-C ends it there")
    there = queued(job.ids)
    note(directory, "cancel")
    if not there:
        return "nothing of it is in the queue"
    ids = sorted({each.job.partition("_")[0] for each in there})  # those that Slurm forgot are an error to scancel
    call("scancel", "--state=PENDING", *ids)
    if running := [each.job for each in there if each.is_running]:
        call("scancel", "--signal=KILL", *running)  # scancel alone asks first, and a run that is asked saves
        call("scancel", *running)
    return f"{count(len(there), 'element')} cancelled; `poro launch` goes on from the newest checkpoint"


def _launched(directory: Path) -> Job:
    job = load_job(directory)
    if job is None:
        raise LaunchError(
            f"{directory}: nothing was launched from here; `touch {directory / STOP}` stops a run that `poro train` started"
        )
    return with_ids(job)
