"""Changing what waits in the queue: cancel it, hold it, keep it off nodes. Elements that run are left alone."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

from megatron_poro.engine.launch import job_of
from megatron_poro.slurm.commands import (
    PATIENCE_SECONDS,
    SlurmError,
    SlurmUnreachableError,
    call,
    has_slurm,
    is_gone,
    launched_from,
    node_states,
    queued,
    show_job,
)
from megatron_poro.slurm.records import Job

REQUEUE = "requeue"


def own_job() -> str:
    """What a person calls the job that this process belongs to: 12 or 12_3; empty outside of one.

    Slurm's commands take it too. SLURM_JOB_ID they would not: that of an array's last element means the whole array to them.
    """
    return job_of(os.environ)[0]


def with_ids(job: Job, *, patience_seconds: float = PATIENCE_SECONDS) -> Job:
    """The job; where its launch was ended before it could note the ids, with those that the queue has."""
    if job.ids or job.mode == "local" or not has_slurm():
        return job
    return replace(job, ids=tuple(launched_from(job.folder / "logs", patience_seconds=patience_seconds)))


def requeue(own: str) -> bool:
    """Queue this job again; False when it was cancelled, or queued again by somebody else, which Slurm would not mind."""
    shown = show_job(own)
    if shown.get("JobState") == "COMPLETING" and shown.get("Reason") != "TimeLimit":
        return False
    call("scontrol", "requeue", own)
    return True


def waiting(job: Job) -> list[str]:
    """The elements that wait, by the names that Slurm's commands take."""
    return [each.job for each in queued(job.ids) if not each.is_running]


def cancel_waiting(job: Job) -> int:
    """Cancel the elements that wait; returns how many there were."""
    names = waiting(job)
    if names:
        call("scancel", "--state=PENDING", *names)
    return len(names)


def hold_waiting(job: Job) -> int:
    """Hold the elements that wait, until `scontrol release`; returns how many there were."""
    names = waiting(job)
    for name in names:
        call("scontrol", "hold", name)
    return len(names)


def keep_off(job: Job, nodes: Iterable[str]) -> None:
    """Let no waiting element of the job start on these nodes."""
    exclude_on(waiting(job), nodes)


def exclude_on(names: Iterable[str], nodes: Iterable[str]) -> None:
    """Tell Slurm which nodes the waiting jobs `names` must not get. What started meanwhile is passed over."""
    listed = ",".join(nodes)
    for name in names:
        try:
            call("scontrol", "update", f"JobId={name}", f"ExcNodeList={listed}")
        except SlurmUnreachableError:
            raise
        except SlurmError as error:
            if "no longer pending" not in str(error) and "Invalid job id" not in str(error):
                raise


def affordable(job: Job, excluded: Mapping[str, str]) -> list[str]:
    """The excluded nodes that the partition can do without, newest first: a job that no node is left for never starts."""
    states = node_states(job.partition)
    usable = [node for node, state in states.items() if not is_gone(state)]
    spare = len(usable) - job.nodes
    kept = []
    for node in reversed(list(excluded)):
        if node not in usable:
            kept.append(node)
        elif spare > 0:
            kept.append(node)
            spare -= 1
    return kept
