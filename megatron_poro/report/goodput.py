"""Where the hours went: every second of every start of a run, and of its time in the queue, in exactly one category.

Read from what lies in the run directory, so it can be asked at any time: records of metrics.jsonl cut each start's time into pieces
from one record to the next, the notes of a launch say when its elements waited, began and ended.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from megatron_poro.data.table import render_table
from megatron_poro.errors import LaunchError
from megatron_poro.observe import Record, read_records
from megatron_poro.observe.words import format_seconds
from megatron_poro.slurm.history import Attempt, attempts
from megatron_poro.slurm.records import folder_of, load_job, read_notes

CATEGORIES = {
    "queued": "waiting in Slurm's queue, from the launch or the last element's end on",
    "start-up": "node check, starting processes, building the model, and ending them",
    "resume": "reading a checkpoint, also to go back to it after bad steps",
    "productive steps": "steps whose update the run still has",
    "recomputed steps": "steps, whole or begun, that were lost: with a kill, or because the run went back behind them",
    "validation": "reading the held-out sets",
    "saving stall": "training stood still for a checkpoint",
    "hang": "from the last sign of life of a start that hung until it was ended",
    "skipped": "steps whose update was left out as bad",
}
"""Each with what it is, in the order of tables."""


@dataclass
class Stay:
    """One time of the run on its devices: from `begin` to `end`, in seconds since 1970, and what became of each second.

    The seconds in the queue before it are counted with it.
    """

    job: str
    begin: float
    end: float
    devices: int
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0.0))

    def add(self, category: str, seconds: float) -> None:
        """Give seconds to a category; none where clocks of nodes differ."""
        self.seconds[category] += max(seconds, 0.0)


@dataclass(frozen=True)
class Goodput:
    """All stays of a run. `seconds` are by category; their sum is `wall_seconds`. Waiting in the queue costs no GPU-hours."""

    stays: tuple[Stay, ...]
    gpus_per_device: float

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each category, over all stays."""
        return {name: sum(stay.seconds[name] for stay in self.stays) for name in CATEGORIES}

    @property
    def wall_seconds(self) -> float:
        """Seconds in the queue and on devices."""
        return sum(self.seconds.values())

    @property
    def gpu_hours(self) -> dict[str, float]:
        """Hours of each category times the devices, as the cluster bills them."""
        return {
            name: sum(stay.seconds[name] * stay.devices for stay in self.stays) * self.gpus_per_device / 3600 * (name != "queued")
            for name in CATEGORIES
        }

    @property
    def share(self) -> float:
        """Productive part of the GPU-hours, the goodput; 0 before there are any."""
        hours = self.gpu_hours
        total = sum(hours.values())
        return hours["productive steps"] / total if total else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "seconds": self.seconds,
            "gpu_hours": self.gpu_hours,
            "wall_seconds": self.wall_seconds,
            "goodput": self.share,
            "starts": [vars(stay) for stay in self.stays],
        }


@dataclass(frozen=True)
class _Start:
    """The records of one start's processes, the first its `start`, with what each is the end of; and when it was last heard of."""

    records: list[Record]
    categories: list[str]
    heard: float
    hung: bool

    @property
    def job(self) -> tuple[str, int]:
        return self.records[0]["job"], self.records[0]["restart"]


def account(run_directory: Path) -> Goodput:
    """The account of a run. Raises LaunchError when it never started."""
    notes = read_notes(run_directory)
    starts = list(_starts(read_records(run_directory / "metrics.jsonl"), read_records(run_directory / "events.jsonl")))
    if not starts and not notes:
        raise LaunchError(f"{run_directory}: no start is noted there; give the directory of a run that began")
    tried = attempts(notes, 0)
    launched = {(attempt.job, attempt.restart) for attempt in tried}
    begins = [_began(folder_of(run_directory) / "elements", attempt) for attempt in tried]
    stays = list(_elements(list(zip(tried, begins, strict=True)), notes, {start.job: start for start in starts}))
    stays += [_alone(start) for start in starts if start.job not in launched]
    job = load_job(run_directory)
    return Goodput(tuple(sorted(stays, key=lambda stay: stay.begin)), job.gpus_per_rank if job else 1.0)


def _starts(records: Sequence[Record], events: Sequence[Record]) -> Iterator[_Start]:
    """The starts of a run, each with its own records. Those of versions that did not note when they began are passed over."""
    counted = [(record, category) for record, category in zip(records, _categories(records), strict=True)]
    firsts = [n for n, record in enumerate(records) if record["event"] == "start" and "began" in record]
    for first, following in pairwise([*firsts, len(records)]):
        own = counted[first:following]
        told = [event for event in events if event["start"] == records[first]["start"]]
        yield _Start(
            records=[record for record, _ in own],
            categories=[category for _, category in own],
            heard=max(entry["time"] for entry in (*(record for record, _ in own), *told)),
            hung=any(event["event"] == "hang" for event in told),
        )


def _categories(records: Sequence[Record]) -> list[str]:
    """What each record is the end of; empty for those that end nothing. A `start` at step n makes later steps before it lost."""
    found: list[str] = []
    steps: list[int] = []  # places of the steps that count so far
    for place, record in enumerate(records):
        event = record["event"]
        if event == "start":
            while steps and records[steps[-1]]["step"] > record["step"]:
                found[steps.pop()] = "recomputed steps"
        if event == "step":
            steps.append(place)
        names = {
            "start": "resume" if record["step"] else "start-up",
            "step": "productive steps" if record.get("updated", True) else "skipped",
            "validation": "validation",
            "end": "saving stall",
        }
        found.append(names.get(event, ""))
    return found


def _began(folder: Path, attempt: Attempt) -> float:
    """When Slurm gave an element its nodes, by what is kept of its job; else when it first said something."""
    try:
        kept = (folder / f"{attempt.job}-{attempt.restart}" / "job.txt").read_text(encoding="utf-8")
        return min(float(dict(line.partition("=")[::2] for line in kept.splitlines())["StartTime"]), attempt.begin)
    except (OSError, ValueError, KeyError):
        return attempt.begin


def _elements(
    tried: Sequence[tuple[Attempt, float]], notes: Sequence[Record], starts: Mapping[tuple[str, int], _Start]
) -> Iterator[Stay]:
    """The elements of a launch, each with when it began."""
    launches = [record["time"] for record in notes if record["event"] == "launch"]
    before = 0.0
    for attempt, began in tried:
        start = starts.get((attempt.job, attempt.restart))
        stay = Stay(attempt.job, began, attempt.end or (start.heard if start else attempt.begin), attempt.devices)
        asked = max([before, *(time for time in launches if time <= attempt.begin)])
        stay.add("queued", began - asked if asked else 0.0)
        _fill(stay, start)
        before = stay.end
        yield stay


def _alone(start: _Start) -> Stay:
    """A start without a launch: `poro train` on its own."""
    first = start.records[0]
    stay = Stay(first["job"], first["began"], start.heard, first["world_size"])
    _fill(stay, start)
    return stay


def _fill(stay: Stay, start: _Start | None) -> None:
    """Cut the stay into pieces that end with the start's records."""
    if start is None:
        stay.add("start-up", stay.end - stay.begin)
        return
    first = start.records[0]
    reached = first["time"] - first["load_seconds"]
    stay.add("start-up", reached - stay.begin)
    doing = "productive steps"
    for record, category in zip(start.records, start.categories, strict=True):
        if not category:
            continue
        passed = max(record["time"] - reached, 0.0)
        reached = max(reached, record["time"])
        if record["event"] in ("step", "validation"):
            own, doing = _parts(record, category, passed, doing)
            for name, seconds in own.items():
                stay.add(name, seconds)
        else:
            stay.add(category, passed)
    stay.add(_rest(start), stay.end - reached)


def _parts(record: Record, category: str, passed: float, doing: str) -> tuple[dict[str, float], str]:
    """The seconds up to a step's or a validation's record by category, and what the run does after it."""
    if record["event"] == "validation":
        reading = min(record.get("seconds", passed), passed)
        return {"validation": reading, doing: passed - reading}, doing
    stall = min(record.get("save_stall_seconds", 0.0), passed)
    return {"saving stall": stall, category: passed - stall}, category


def _rest(start: _Start) -> str:
    """What the time after the last record was."""
    if start.hung:
        return "hang"
    return "start-up" if start.records[-1]["event"] == "end" else "recomputed steps"


def render(goodput: Goodput) -> str:
    """The account as a table: a line for each category and one for the sum."""
    seconds, hours = goodput.seconds, goodput.gpu_hours
    total = goodput.wall_seconds or 1.0
    rows = [["", "time", "share", "GPU-hours"]]
    rows += [[name, format_seconds(seconds[name]), f"{seconds[name] / total:.1%}", f"{hours[name]:,.2f}"] for name in CATEGORIES]
    rows.append(["all", format_seconds(goodput.wall_seconds), "", f"{sum(hours.values()):,.2f}"])
    starts = f"{len(goodput.stays)} start{'s' * (len(goodput.stays) != 1)}"
    return f"{render_table(rows)}\n{starts}; {goodput.share:.1%} of the GPU-hours went into steps that the run still has"
