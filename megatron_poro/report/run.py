"""A run as the report sees it: what its directory holds, and what can be said of it without asking anyone else."""

import contextlib
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_poro.config import RunConfig, load_run
from megatron_poro.config.duration import Duration, duration_of
from megatron_poro.errors import ConfigError, PoroError
from megatron_poro.observe import Record, read_records
from megatron_poro.report.series import History, Start, read_history
from megatron_poro.slurm.history import hold_reason, last_failure
from megatron_poro.slurm.records import read_notes

RUNNING_SECONDS = 600.0
"""A run that wrote something so lately is taken to run still."""


@dataclass(frozen=True)
class Run:
    """A run's directory, read. `config` is None where config.toml is missing or of another release; `problem` says which."""

    directory: Path
    name: str
    history: History
    config: RunConfig | None
    problem: str
    events: list[Record]
    notes: list[Record]

    @cached_property
    def duration(self) -> Duration | None:
        """How long it is to be."""
        return duration_of(self.config) if self.config else None


@dataclass(frozen=True)
class Mark:
    """Something that happened to a run at `step`: a `restart`, `rollback`, `skipped` step or change of the `mix`, and `why`."""

    kind: str
    step: int
    why: str
    time: float | None = None

    @property
    def text(self) -> str:
        """All of it in a line."""
        return f"{self.kind} at step {self.step:,}: {self.why}"


def load_runs(directories: list[Path]) -> list[Run]:
    """The runs, each under a name of its own. Raises PoroError for a directory that is no run's."""
    names = [directory.resolve().name for directory in directories]
    if len(set(names)) < len(names):
        names = [str(directory) for directory in directories]
    return [load(directory, name) for directory, name in zip(directories, names, strict=True)]


def load(directory: Path, name: str) -> Run:
    """The run in a directory. Raises PoroError when it holds none, or nothing was trained there yet."""
    metrics = directory / "metrics.jsonl"
    if not metrics.is_file():
        raise PoroError(f"{directory}: no metrics.jsonl there; give the run_directory of a run that has been started")
    history = read_history(metrics)
    if not history.series and not history.starts:
        raise PoroError(f"{metrics}: no line of it can be read as metrics of a run")
    config, problem = None, ""
    try:
        config = load_run(directory / "config.toml")
    except ConfigError as error:
        problem = error.problems[0]
    return Run(directory, name, history, config, problem, read_records(directory / "events.jsonl"), read_notes(directory))


def state_of(run: Run, now: float | None = None) -> str:
    """In a few words: done, running, held, stopped, failed, or ended without a word."""
    last = run.history.last or {}
    if run.duration and run.history.last_step >= run.duration.num_steps:
        return "done"
    if reason := hold_reason(run.notes):
        return f"held: {reason}"
    if last.get("event") == "end":
        return f"stopped by {last['stopped_by']}" if last.get("stopped_by") else "stopped where it was told to"
    since = time_of(last)
    if failure := failure_between(run, since, np.inf):
        return f"failed: {failure}"
    if (time.time() if now is None else now) - since < RUNNING_SECONDS:
        return "running"
    return "ended without a word"


def time_of(record: Record) -> float:
    """When a record was written, in seconds since 1970; 0 where it does not say."""
    found = record.get("time")
    return float(found) if isinstance(found, int | float) else 0.0


def failure_between(run: Run, begin: float, end: float) -> str:
    """The last failure in the run's events between two times, in words; empty when there is none."""
    found = [event for event in run.events if begin <= time_of(event) < end]
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return last_failure(found)
    return "of something that events.jsonl does not tell whole"


def marks_of(run: Run) -> list[Mark]:
    """Everything to be marked on the curves, in the order of steps."""
    marks = [_mark_start(run, number) for number in range(1, len(run.history.starts))]
    for record in run.history.others:
        if record["event"] == "bad_step":
            marks.append(Mark("skipped", record["step"], str(record.get("reason", "")), record.get("time")))
    if run.config and run.duration:
        for stage in run.config.data.stages:
            shares = ", ".join(f"{name} {weight:g}" for name, weight in stage.weights.items())
            step = run.duration.step_reaching(stage.from_tokens)
            marks.append(Mark("mix", step, f"{shares} from here on"))
    return sorted(marks, key=lambda mark: mark.step)


def _mark_start(run: Run, number: int) -> Mark:
    starts = run.history.starts
    start, before = starts[number], starts[number - 1]
    when = time_of(start.record)
    cause = _cause(run, start, time_of(before.record))
    kind = "rollback" if "left_out" in start.record else "restart"
    repeated = f"; steps taken again: {start.reached - start.step:,}" if start.reached > start.step else ""
    return Mark(kind, start.step, cause + repeated, when)


def _cause(run: Run, start: Start, since: float) -> str:
    """Why a start had to be: what the run, its events and the elements of its job array say, in this order."""
    until = time_of(start.record)
    if "left_out" in start.record:
        return f"bad steps in a row; samples {'-'.join(map(str, start.record['left_out']))} are left out"
    if failure := failure_between(run, since, until):
        return failure
    if start.ended:
        return f"stopped by {start.ended['stopped_by']}" if start.ended.get("stopped_by") else "had come as far as it was told to"
    ends = [note for note in run.notes if note["event"] == "end" and since <= time_of(note) < until]
    if ends:
        return f"element {ends[-1].get('job', '')} ended with exit code {ends[-1].get('code')}"
    return "ended without a word, as a killed one does"
