"""The parent of ranks as their watchdog: it reads their heartbeats, and acts when they fall silent or fail anywhere in the run.

Imports no torch and stays small. All files of the run directory are touched by a thread beside the loop that watches, and waited
for only so long: a file system that hangs is one of the things that are watched for.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from megatron_poro.config import FaultsConfig
from megatron_poro.engine.heartbeat import HEARTBEATS, Beat, beat_path, heartbeat_directory, read_beat
from megatron_poro.engine.launch import GRACE_SECONDS, Watch
from megatron_poro.engine.phases import Phase
from megatron_poro.errors import HANG_CODE
from megatron_poro.training.failures import Failure, Start, add_event, read_failure, report_failure, save_start
from megatron_poro.training.hangs import NO_ANSWER, RUNNING, RankReport, describe_hang, render_hang, with_stacks
from megatron_poro.training.stacks import collect_stacks, process_state

LOOK_SECONDS = 0.25
PUBLISH_SECONDS = 5.0
MARKER_SECONDS = 1.0
GATHER_SECONDS = 6.0
"""How long the supervisor that reports a hang waits for what the others know."""
DISK_SECONDS = 20.0
BUSY_WORLD = 200
"""Ranks from which on files are touched less often, in proportion: a parallel file system serves all of them."""

Result = TypeVar("Result")


@dataclass
class Watched:
    """What the supervisor knows of one of its ranks."""

    rank: int
    pid: int
    limit_seconds: float
    beat: Beat = Beat(0, 0, 0, 0, 0.0, 0.0, 0.0)
    silent_seconds: float = 0.0
    published: float = field(default=-1e9)
    was_odd: bool = False

    def note(self, beat: Beat | None, passed_seconds: float) -> None:
        """Take the last beat in; a pause of the supervisor itself is not held against the rank."""
        if beat is not None and beat.sequence != self.beat.sequence:
            self.beat, self.silent_seconds, self.limit_seconds = beat, 0.0, beat.limit_seconds
        else:
            self.silent_seconds += min(passed_seconds, 1.0)

    @property
    def hangs(self) -> bool:
        """Whether it was silent for longer than its limit."""
        return bool(self.limit_seconds) and self.silent_seconds > self.limit_seconds

    @property
    def is_odd(self) -> bool:
        """Whether its silence begins to look like a hang."""
        return bool(self.limit_seconds) and self.silent_seconds > self.limit_seconds / 4

    def report(self) -> RankReport:
        """The rank as others are told of it."""
        phase, beat = Phase(self.beat.phase), self.beat
        where = (beat.step, beat.microbatch, phase.label, int(phase), beat.sequence)
        state = process_state(self.pid)
        return RankReport(self.rank, socket.gethostname(), self.pid, *where, self.silent_seconds, self.limit_seconds, state)


@contextlib.contextmanager
def watch_ranks(start: Start, faults: FaultsConfig, world_size: int, *, speaks: bool) -> "Iterator[Supervisor]":
    """A supervisor with a place where its ranks beat; the place goes with it."""
    with heartbeat_directory() as directory:
        save_start(start, directory)
        yield Supervisor(start, directory, faults, world_size, speaks=speaks)


class Supervisor(Watch):
    """Watches the ranks of this process. `directory` is where they beat; `speaks` is set on one supervisor of a node."""

    ranks_listen = True

    def __init__(self, start: Start, directory: Path, faults: FaultsConfig, world_size: int, *, speaks: bool) -> None:
        self.grace_seconds = GRACE_SECONDS
        self._start = start
        self._directory = directory
        self._run_directory = Path(start.run_directory)
        self._first_limit = faults.hang_other_seconds if faults.hang_factor else 0.0
        self._world_size = world_size
        self._speaks = speaks
        self._ranks: list[Watched] = []
        self._looked = time.monotonic()
        self._failure: Failure | None = None
        self._news = threading.Event()
        self._asked = threading.Event()
        self._files = threading.Lock()
        self._is_final = False
        self._interval = max(1.0, world_size / BUSY_WORLD)

    def environment(self) -> dict[str, str]:
        """Ranks learn where to beat."""
        return {HEARTBEATS: str(self._directory)}

    def started(self, pids: Mapping[int, int]) -> None:
        """Begin to watch."""
        self._ranks = [Watched(rank, pid, self._first_limit) for rank, pid in pids.items()]
        signal.signal(signal.SIGQUIT, lambda number, frame: self._asked.set())
        threading.Thread(target=self._keep_files, daemon=True).start()

    def look(self) -> int | None:
        """Read the beats; a code when a rank hangs or another supervisor's rank failed."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        for rank in self._ranks:
            read = read_beat(beat_path(self._directory, rank.rank))
            rank.note(read[1] if read else None, now - self._looked)
            if rank.is_odd and not rank.was_odd:
                self._news.set()
        self._looked = now
        if (failure := self._failure) is not None:
            return self._follow(failure)
        if self._asked.is_set():
            self._asked.clear()
            folder = _within(DISK_SECONDS, lambda: self._write_stacks(final=False))
            print(f"stacks were asked for and are in {folder}", file=sys.stderr, flush=True)
        late = [rank for rank in self._ranks if rank.hangs]
        return self._end_hang(max(late, key=lambda rank: rank.silent_seconds)) if late else None

    def ended(self, rank: int, code: int) -> None:
        """Tell the other supervisors, and say what the rank had no time to say."""
        code_of_all = code if code > 0 else 128 - code
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        kind = "signal" if code < 0 else "bug"
        _within(DISK_SECONDS, lambda: report_failure(self._start, kind, rank, code_of_all, name))
        if code < 0:
            read = read_beat(beat_path(self._directory, rank))
            where = f"in step {read[1].step}, {Phase(read[1].phase).label}" if read else "before its first sign of life"
            what = f"rank {rank} on {socket.gethostname()} was ended by {name} {where}; the others are stopped"
            print(f"error: {what}", file=sys.stderr, flush=True)

    def _follow(self, failure: Failure) -> int | None:
        """End this supervisor's ranks because of another's, after what a hang asks for."""
        if any(rank.rank == failure.rank for rank in self._ranks) and failure.kind != "hang":
            return None  # its end is seen by itself
        if failure.kind == "hang":
            _within(DISK_SECONDS, lambda: self._write_stacks(final=True))
            self.grace_seconds = 0.0
            time.sleep(min(3.0, GATHER_SECONDS / 2))  # the reporting supervisor's ranks must not see these go
        if self._speaks:
            verb = "is silent" if failure.kind == "hang" else "failed"
            what = f"rank {failure.rank} on {failure.host} {verb} (exit code {failure.code})"
            print(f"error: {what}; the ranks on {socket.gethostname()} are stopped", file=sys.stderr, flush=True)
        return failure.code

    def _end_hang(self, late: Watched) -> int | None:
        """Write all stacks and the report; the first supervisor that sees the hang speaks."""
        message = str(late.report())
        first = _within(DISK_SECONDS, lambda: report_failure(self._start, "hang", late.rank, HANG_CODE, message))
        if first is not None and (first.kind, first.rank) != ("hang", late.rank):
            return self._follow(first) or first.code
        self.grace_seconds = 0.0
        if not _within(DISK_SECONDS + GATHER_SECONDS, self._report_hang):
            print(f"hang: {message}; the run directory does not answer, no stacks were written", file=sys.stderr, flush=True)
        return HANG_CODE

    def _report_hang(self) -> bool:
        folder = self._write_stacks(final=True)
        reports = self._gather_reports()
        missing = sorted(set(range(self._world_size)) - {report.rank for report in reports})
        told = describe_hang(reports, missing)
        (folder / "hang.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        (folder / "hang.txt").write_text(render_hang(reports, missing, all_ranks=True) + "\n", encoding="utf-8")
        keys = ("behind", "hosts", "reason", "missing")
        add_event(self._start, "hang", {key: told[key] for key in keys} | {"stacks": str(folder)})
        print(render_hang(reports, missing), file=sys.stderr)
        print(f"stacks of every rank: {folder}\nthe run ends with exit code {HANG_CODE}", file=sys.stderr, flush=True)
        return True

    def _write_stacks(self, *, final: bool) -> Path:
        """Stacks of this supervisor's ranks into the run directory, then their heartbeats; the final ones are the last."""
        folder = self._run_directory / "stacks" / self._start.name
        folder.mkdir(parents=True, exist_ok=True)
        stacks = collect_stacks(self._directory, {rank.rank: rank.pid for rank in self._ranks})
        with self._files:
            self._is_final = final
        for rank in self._ranks:
            (folder / f"rank_{rank.rank:05d}.txt").write_text(stacks[rank.rank], encoding="utf-8")
            self._publish(with_stacks(rank.report(), stacks[rank.rank]), final=final)
        return folder

    def _gather_reports(self) -> list[RankReport]:
        """Every rank's report; a rank whose supervisor did not answer in time keeps its last one."""
        deadline = time.monotonic() + GATHER_SECONDS
        while True:
            found = self._read_published()
            waiting = self._world_size > len(self._ranks) and sum(is_final for is_final, _ in found) < self._world_size
            if not waiting or time.monotonic() > deadline:
                return [report for _, report in found]
            time.sleep(0.2)

    def _read_published(self) -> list[tuple[bool, RankReport]]:
        found = []
        for path in sorted((self._run_directory / "heartbeats").glob("rank_*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                content = json.loads(path.read_text(encoding="utf-8"))
                start, is_final, written = (content.pop(key) for key in ("start", "final", "written"))
                if start == self._start.name and (self._start.is_unique or written > self._start.time):
                    report = RankReport(**content)
                    # A final report was written for this hang, whatever the clock of its node says.
                    late = not is_final and time.time() - written > 3 * PUBLISH_SECONDS * self._interval
                    old = late and report.state == RUNNING
                    found.append((is_final, RankReport(**{**content, "state": NO_ANSWER}) if old else report))
        return found

    def _keep_files(self) -> None:
        """The thread for the run directory: publish heartbeats, and look whether another supervisor's rank failed."""
        while not self._is_final:
            with contextlib.suppress(OSError), self._files:
                self._failure = self._failure or read_failure(self._start)
                if not self._is_final:
                    self._publish_due()
            self._news.wait(MARKER_SECONDS * self._interval)
            self._news.clear()

    def _publish_due(self) -> None:
        for rank in self._ranks:
            due = time.monotonic() - rank.published > PUBLISH_SECONDS * self._interval
            if due or (rank.is_odd and not rank.was_odd):
                self._publish(rank.report(), final=False)
                rank.published = time.monotonic()
            rank.was_odd = rank.is_odd

    def _publish(self, report: RankReport, *, final: bool) -> None:
        path = self._run_directory / "heartbeats" / f"rank_{report.rank:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"start": self._start.name, "final": final, "written": time.time(), **vars(report)}
        partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(path)


def _within(seconds: float, work: Callable[[], Result]) -> Result | None:
    """What `work` returns; None when it takes longer, or fails for the disk."""
    results: list[Result] = []

    def run() -> None:
        with contextlib.suppress(OSError):
            results.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
