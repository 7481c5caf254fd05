"""metrics.jsonl as columns of numbers, read line by line: 40,000 steps with many metrics take tens of megabytes, not hundreds."""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_poro.observe import Record
from megatron_poro.observe.catalog import numbers_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass
class Series:
    """A metric, at the steps at which it was written; ascending."""

    stored_steps: "array[int]" = field(default_factory=lambda: array("q"))
    stored_values: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def steps(self) -> Integers:
        """[records]."""
        return np.frombuffer(self.stored_steps, np.int64) if self.stored_steps else np.empty(0, np.int64)

    @property
    def values(self) -> Floats:
        """[records]; what is not finite stays so."""
        return np.frombuffer(self.stored_values, np.float64) if self.stored_values else np.empty(0)

    def take_back(self, step: int) -> None:
        """Forget what was written after `step`."""
        while self.stored_steps and self.stored_steps[-1] > step:
            self.stored_steps.pop()
            self.stored_values.pop()


@dataclass(frozen=True)
class Start:
    """A start of the run at `step`, when it had come to `reached` before; `ended` is the `end` before it, if it could say so."""

    record: Record
    step: int
    reached: int
    ended: Record | None


@dataclass
class History:
    """What metrics.jsonl tells. `series` by the names of the catalog, `others` all records that count but for steps and starts."""

    series: dict[str, Series] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    others: list[Record] = field(default_factory=list)
    last: Record | None = None

    @property
    def last_step(self) -> int:
        """Where the last step that counts stands; 0 before the first."""
        steps = self["train/loss"].stored_steps
        return steps[-1] if steps else 0

    @property
    def last_tokens(self) -> int:
        """Tokens read by the last step that counts."""
        tokens = self["progress/tokens"].stored_values
        return int(tokens[-1]) if tokens else 0

    def __getitem__(self, name: str) -> Series:
        return self.series.get(name, Series())

    def tokens_at(self, steps: Integers) -> Floats:
        """Tokens read by each of `steps`: written down with steps, in between by their share."""
        known = self["progress/tokens"]
        found: Floats = np.interp(steps, np.append([0], known.steps), np.append([0.0], known.values))
        return found


def read_history(path: Path) -> History:
    """The history in a file of metrics. Lines that a kill tore are left out, and so are steps that a later start repeated."""
    history = History()
    reached, ended = 0, None
    for record in _records(path):
        step, event = record["step"], record["event"]
        if event == "start":
            history.starts.append(Start(record, step, max(reached, step), ended))
            _take_back(history, step)
            reached, ended = step, None
        elif event not in ("step", "validation", "speed"):
            history.others.append(record)
        ended = record if event == "end" else ended
        reached = max(reached, step)
        history.last = record
        for name, value in _numbers(record).items():
            series = history.series.setdefault(name, Series())
            series.stored_steps.append(step)
            series.stored_values.append(value)
    return history


def _numbers(record: Record) -> dict[str, float]:
    try:
        return numbers_of(record)
    except (TypeError, ValueError):  # something else than a number in a table
        return {}


def _take_back(history: History, step: int) -> None:
    for series in history.series.values():
        series.take_back(step)
    history.others = [record for record in history.others if record["step"] <= step]


def _records(path: Path) -> Iterator[Record]:
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if _is_record(record):
                yield record


def _is_record(record: Any) -> bool:
    """Whether it has what every record has; a disk that was full or a foreign hand leaves other lines too."""
    if not isinstance(record, dict) or not isinstance(record.get("event"), str) or not isinstance(record.get("step"), int):
        return False
    return 0 <= record["step"] < 2**31 and isinstance(record.get("time"), int | float)
