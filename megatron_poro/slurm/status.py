"""`poro status`: one screen from the queue and the run directory. Works without Slurm, without accounting, and while it is away."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_poro.config import RunConfig, load_run
from megatron_poro.config.duration import duration_of
from megatron_poro.engine.paths import list_checkpoints, step_of
from megatron_poro.errors import LaunchError
from megatron_poro.observe import Record, read_metrics, read_records
from megatron_poro.observe.words import format_seconds
from megatron_poro.slurm.commands import QueuedJob, SlurmError, has_slurm, queued
from megatron_poro.slurm.element import newest_step
from megatron_poro.slurm.history import Attempt, attempts, excluded, hold_reason, last_failure
from megatron_poro.slurm.queue import with_ids
from megatron_poro.slurm.records import Job, count, load_job, read_notes
from megatron_poro.training.start import find_finished

RECENT_STEPS = 50
ORDINARY = frozenset({"None", "JobArrayTaskLimit", "Dependency"})
"""Reasons of waiting that only say that one element comes after the other."""
PATIENCE_SECONDS = 4.0
"""How long a person waits for a controller that does not answer."""


@dataclass(frozen=True)
class Status:
    """A run at a glance. Times are in seconds, `gpu_hours_*` as the cluster bills them; None where nothing is known yet."""

    directory: str
    state: str
    element: str
    elements_waiting: int
    queue: str
    step: int
    num_steps: int
    tokens: int
    num_tokens: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    saved_step: int
    saved_ago: float | None
    bad_steps: int
    rollbacks: int
    restarts: int
    last_failure: str
    held: str
    excluded: dict[str, str]
    gpu_hours_used: float
    gpu_hours_left: float | None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def read_status(directory: Path) -> Status:
    """The status of a run directory. Raises PoroErrors when it is none."""
    job, now = load_job(directory), time.time()
    file = directory / "slurm" / "run.toml" if job else directory / "config.toml"
    if not file.exists():
        raise LaunchError(f"{directory}: neither launched nor trained; give a run directory, a run file or a recipe")
    config = load_run(file)
    notes = read_notes(directory)
    records = read_metrics(directory / "metrics.jsonl")
    jobs, problem = _ask_queue(job)
    tried = attempts(notes, newest_step(directory))
    steps = [record for record in records if record["event"] == "step"]
    duration = duration_of(config)
    step = int(steps[-1]["step"]) if steps else 0
    seconds = _seconds_a_step(steps)
    left = (duration.num_steps - step) * seconds if seconds else None
    running = next((each for each in jobs if each.is_running), None)
    ranks, gpus = (job.nodes * job.tasks_per_node, job.gpus_per_rank) if job else (0, 1.0)
    saved = list_checkpoints(directory)[-1:]
    return Status(
        directory=str(directory),
        state=_state(job, notes, jobs=jobs, is_done=find_finished(config) is not None, is_known=not problem),
        element=running.job if running else "",
        elements_waiting=sum(not each.is_running for each in jobs),
        queue=problem or "; ".join(sorted({each.reason for each in jobs if not each.is_running} - ORDINARY)),
        step=step,
        num_steps=duration.num_steps,
        tokens=duration.samples_before(step) * config.data.sequence_length,
        num_tokens=duration.samples_before(duration.num_steps) * config.data.sequence_length,
        loss=steps[-1]["loss"] if steps else None,
        tokens_per_second=_rate(steps, seconds, config),
        seconds_left=left,
        saved_step=step_of(saved[0]) if saved else 0,
        saved_ago=now - (saved[0] / "files.json").stat().st_mtime if saved and (saved[0] / "files.json").exists() else None,
        bad_steps=sum(record["event"] == "bad_step" for record in records),
        rollbacks=sum(record["event"] == "start" and "left_out" in record for record in records),
        restarts=max(len(tried), sum("began" in record for record in records if record["event"] == "start"), 1) - 1,
        last_failure=last_failure(read_records(directory / "events.jsonl")),
        held=hold_reason(notes),
        excluded=excluded(notes),
        gpu_hours_used=_rank_hours(tried, records, is_running=running is not None, now=now) * gpus,
        gpu_hours_left=left * ranks * gpus / 3600 if left is not None and ranks else None,
    )


def _ask_queue(job: Job | None) -> tuple[list[QueuedJob], str]:
    """What waits and runs, and what kept us from knowing."""
    if job is None or job.mode == "local":
        return [], ""
    if not has_slurm():
        return [], "Slurm's commands are not here"
    try:
        ids = with_ids(job, patience_seconds=PATIENCE_SECONDS).ids
        return queued(ids, patience_seconds=PATIENCE_SECONDS), ""
    except SlurmError as error:
        return [], str(error)


def _state(job: Job | None, notes: Sequence[Record], *, jobs: Sequence[QueuedJob], is_done: bool, is_known: bool) -> str:
    """The first that holds; of a queue that does not answer nothing follows."""
    states = {
        "done": is_done,
        "unknown": not is_known,
        "running": any(each.is_running for each in jobs),
        "held": bool(hold_reason(notes)),
        "waiting": bool(jobs),
        "stopped": any(record["event"] == "stop" for record in notes[-3:]),
        "not in the queue": job is not None and job.mode != "local",
    }
    return next((state for state, holds in states.items() if holds), "not launched")


def _seconds_a_step(steps: Sequence[Record]) -> float | None:
    recent = sorted(record["seconds"] for record in steps[-RECENT_STEPS:] if "seconds" in record)
    return recent[len(recent) // 2] if recent else None


def _rate(steps: Sequence[Record], seconds: float | None, config: RunConfig) -> float | None:
    if not seconds:
        return None
    return float(steps[-1].get("tokens_per_second") or config.training.global_batch_size * config.data.sequence_length / seconds)


def _rank_hours(tried: Sequence[Attempt], records: Sequence[Record], *, is_running: bool, now: float) -> float:
    """Of all attempts; one that could not say when it ended counts to its last sign of life. Clocks of nodes may differ."""
    total = 0.0
    for n, attempt in enumerate(tried):
        is_last = n + 1 == len(tried)
        until = math.inf if is_last else tried[n + 1].begin
        alive = max((record["time"] for record in records if attempt.begin <= record["time"] < until), default=attempt.begin)
        end = attempt.end or (max(alive, now) if is_last and is_running else alive)
        total += max(end - attempt.begin, 0.0) * attempt.devices / 3600
    return total


def render(status: Status) -> str:
    """The screen."""
    share = status.step / status.num_steps if status.num_steps else 0.0
    lines = [
        ("run", status.directory),
        (
            "state",
            status.state
            + (f", element {status.element}" if status.element else "")
            + f", {count(status.elements_waiting, 'element')} waiting" * bool(status.elements_waiting and status.element),
        ),
        ("queue", status.queue),
        ("held", status.held),
        ("step", f"{status.step:,} of {status.num_steps:,} ({share:.1%}), {status.tokens:,} of {status.num_tokens:,} tokens"),
        ("loss", f"{status.loss:.4f}" if status.loss is not None else ""),
        ("rate", f"{status.tokens_per_second:,.0f} tokens/s" if status.tokens_per_second else ""),
        ("time left", format_seconds(status.seconds_left) if status.seconds_left and status.state != "done" else ""),
        (
            "last save",
            f"step {status.saved_step:,}, {format_seconds(status.saved_ago)} ago" if status.saved_ago is not None else "none",
        ),
        ("bad steps", f"{status.bad_steps} left out, {count(status.rollbacks, 'rollback')}" if status.bad_steps else ""),
        ("restarts", f"{status.restarts}" + (f"; the last failure: {status.last_failure}" if status.last_failure else "")),
        ("excluded", "; ".join(f"{node}: {reason}" for node, reason in status.excluded.items())),
        (
            "GPU-hours",
            f"{status.gpu_hours_used:,.1f} used"
            + (f", {status.gpu_hours_left:,.1f} to go" if status.gpu_hours_left is not None else ""),
        ),
    ]
    return "\n".join(f"{name:<13} {value}" for name, value in lines if value)


def render_line(status: Status) -> str:
    """One line, for scripts and for several runs."""
    left = format_seconds(status.seconds_left) if status.seconds_left is not None else "?"
    return f"{status.directory}: {status.state}, step {status.step}/{status.num_steps}, {left} left, {status.restarts} restarts"
