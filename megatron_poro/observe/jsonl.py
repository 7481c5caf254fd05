"""metrics.jsonl: one JSON object a line, appended, never rewritten.

Every record has `event`, `step` and `time` (seconds since 1970, by rank 0's clock). `catalog.py` lists the numbers in `step`,
`validation`, `checkpoint` and `speed`. Beside them:

- `start`: the run goes on from `origin` at `step`, with `layout`, `versions`, `world_size`, `device`, `peak_tflops` (None: unknown)
  and `flops_per_token` in both conventions. Of new processes it has `start`, as events.jsonl calls it, `began`, when they began,
  `load_seconds`, what loading took, `job` and `restart`, Slurm's; of a rollback `left_out`, first and last sample.
- `bad_step` (`reason`, `samples`), `stragglers` (`ranks`), `checkpoint_failed` (`path`, `problem`).
- `checkpoint` has also `path` and `ledger`; `end` has `stopped_by`, empty when the run is done.

A `start` at step n takes back every record of a later step: a run that was killed repeats those steps. `read_metrics` applies that.
"""

import json
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import orjson

Record = dict[str, Any]


class MetricSink(Protocol):
    """Takes records; the head of this file says what is in one."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Flush and close."""


class JsonLinesSink:
    """Appends records to a file; each line reaches the kernel at once, so a killed process loses none.

    While the disk is full, records wait in memory.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - lives as long as the run
        self._lock = threading.Lock()
        self._waiting = self._end_of_torn_line()

    def write(self, record: Record) -> None:
        """Append one record; any thread may."""
        with self._lock:
            had_room = self._waiting in (b"", b"\n")
            self._waiting += json.dumps(record).encode() + b"\n"
            try:
                self._flush()
            except OSError as error:
                if had_room:
                    print(
                        f"warning: {self._file.name}: {error.strerror}; records wait in memory until it can be written",
                        file=sys.stderr,
                    )

    def close(self) -> None:
        """Flush to the disk and close. Raises OSError when records are lost."""
        with self._file:
            self._flush()
            os.fsync(self._file.fileno())

    def _flush(self) -> None:
        while self._waiting:
            written = self._file.write(self._waiting)
            self._waiting = self._waiting[written:]

    def _end_of_torn_line(self) -> bytes:
        """A kill in the middle of a write leaves a line without an end; the next record must not continue it."""
        size = self._file.seek(0, os.SEEK_END)
        if not size:
            return b""
        self._file.seek(size - 1)
        return b"" if self._file.read(1) == b"\n" else b"\n"


def read_metrics(path: Path) -> list[Record]:
    """The records that count, in order: torn lines and steps that were repeated after a restart are left out."""
    return those_that_count(read_records(path))


def those_that_count(records: Iterable[Record]) -> list[Record]:
    """The records that no later start takes back."""
    counting: list[Record] = []
    for record in records:
        if record["event"] == "start":
            counting = [earlier for earlier in counting if earlier["step"] <= record["step"]]
        counting.append(record)
    return counting


def read_records(path: Path, num_bytes: int = -1) -> list[Record]:
    """The records of a file, or of its first bytes, in order, without lines that a kill tore; none when there is no such file."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        return _parse(file.read(num_bytes).splitlines())


class FollowedFile:
    """A file of records that is read as it grows, each record once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_new(self) -> list[Record]:
        """The records since the last call; a last line that is still being written waits for the next."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        return _parse(whole.split(b"\n"))


def _parse(lines: Iterable[bytes]) -> list[Record]:
    """The records of lines, without those that a kill tore."""
    records = []
    for line in lines:
        try:
            # NaN, as of a bad step, is no JSON for the fast parser.
            record = json.loads(line) if b"NaN" in line or b"Infinity" in line else orjson.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "event" in record:
            records.append(record)
    return records
