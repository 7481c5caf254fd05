"""How ranks learn of each other's failures: a file in the run directory, once per start. The first one counts.

Whoever fails writes it, a rank itself or, when it had no time, its supervisor. The other supervisors look for it and end their
ranks, so nobody waits for a collective's timeout; ranks that lost a peer look for it to know that the fault is not theirs.
Imports no torch.
"""

import contextlib
import json
import os
import re
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
LOST_PEER = re.compile(r"connection (closed|reset|refused)|broken pipe|timed out|timeout|pair\.cc|nccl error|socket", re.IGNORECASE)


@dataclass(frozen=True)
class Start:
    """One start of a run. `time` is this supervisor's; it tells a marker of an earlier start when the name is not unique.

    `began` is when the supervisor's process began, in seconds since 1970.
    """

    name: str
    is_unique: bool
    time: float
    run_directory: str
    began: float = 0.0

    @property
    def marker(self) -> Path:
        """The file that says that this start failed."""
        return Path(self.run_directory) / "failed" / f"{self.name}.json"


@dataclass(frozen=True)
class Failure:
    """Who failed first. `kind` is `user`, `bug`, `signal`, `hang` or `weights`; `code` the exit code of all processes."""

    kind: str
    rank: int
    host: str
    code: int
    message: str
    time: float


def save_start(start: Start, directory: Path) -> None:
    """Leave the start for the ranks, in the directory of heartbeats."""
    (directory / "start.json").write_text(json.dumps(asdict(start)), encoding="utf-8")


def load_start(directory: Path) -> Start:
    """The start that this rank's supervisor left."""
    return Start(**json.loads((directory / "start.json").read_text(encoding="utf-8")))


def report_failure(start: Start, kind: str, rank: int, code: int, message: str) -> Failure:
    """Write the marker unless there is one; returns what counts, which is another's failure when that one came first."""
    failure = Failure(kind, rank, socket.gethostname(), code, message, time.time())
    try:
        first = _claim(start, failure)
        if first == failure:
            add_event(start, "failed", asdict(failure))
    except OSError:  # without a disk everyone speaks for himself
        return failure
    return first


def _claim(start: Start, failure: Failure) -> Failure:
    start.marker.parent.mkdir(parents=True, exist_ok=True)
    partial = start.marker.with_name(f".{start.marker.name}.{failure.host}.{os.getpid()}")
    partial.write_text(json.dumps(asdict(failure)), encoding="utf-8")
    try:
        while True:
            try:
                os.link(partial, start.marker)  # fails when it exists, and shows the whole content or nothing
                return failure
            except FileExistsError:
                if (first := read_failure(start)) is not None:
                    return first
                start.marker.unlink(missing_ok=True)  # an earlier start's
    finally:
        partial.unlink(missing_ok=True)


def read_failure(start: Start) -> Failure | None:
    """What this start failed of, if it did."""
    try:
        failure = Failure(**json.loads(start.marker.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return failure if start.is_unique or failure.time > start.time else None


def wait_for_failure(start: Start, seconds: float) -> Failure | None:
    """What this start failed of, as soon as it is known; None after `seconds`."""
    deadline = time.monotonic() + seconds
    while (failure := read_failure(start)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return failure


def add_event(start: Start, event: str, values: dict[str, Any]) -> None:
    """Append a line to the run's events.jsonl."""
    line = json.dumps({"event": event, "start": start.name, "time": time.time(), **values}) + "\n"
    with open(Path(start.run_directory) / EVENTS, "a", encoding="utf-8") as file:
        file.write(line)


def note_end(start: Start, code: int) -> None:
    """Append to the run's events that all processes of the start ended; a full disk costs the line."""
    with contextlib.suppress(OSError):
        add_event(start, "ended", {"code": code})


def lost_a_peer(error: BaseException | None) -> bool:
    """Whether a collective failed because another process went away, also when something else was raised from that."""
    while error is not None:
        if isinstance(error, RuntimeError) and LOST_PEER.search(str(error)):
            return True
        if type(error).__name__.startswith("Dist") and type(error).__module__.startswith("torch"):
            return True
        error = error.__cause__ or error.__context__
    return False
