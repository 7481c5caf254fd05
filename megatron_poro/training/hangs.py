"""A hang as told to people: from every rank's last beat and stacks to who is behind, and where. Pure functions, no torch."""

import linecache
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
THREAD = re.compile(r"^(?:Current thread|Thread) 0x.*$", re.MULTILINE)
WAITING_FILES = ("torch/distributed/distributed_c10d.py",)
WAITING_CALL = re.compile(r"wait\(|all_reduce|all_gather|reduce_scatter|all_to_all|broadcast|barrier|\b[bi]*(?:send|recv)")
RUNNING = "running"
STOPPED = "stopped (SIGSTOP)"
BLOCKED = "blocked in the kernel (a file system or driver)"
ENDED = "ended"
NO_ANSWER = "its node does not answer"
LISTED = 8


@dataclass(frozen=True)
class RankReport:
    """What is known of one rank: its last beat, how long ago that was, what the kernel says of it, and where it stands.

    `place` is the innermost line of its Python stack, `own_work` whether that is outside of a collective (None: not known).
    """

    rank: int
    host: str
    pid: int
    step: int
    microbatch: int
    phase: str
    phase_number: int
    sequence: int
    silent_seconds: float
    limit_seconds: float
    state: str = RUNNING
    place: str = ""
    own_work: bool | None = None

    def __str__(self) -> str:
        microbatch = f", microbatch {self.microbatch}" if self.microbatch else ""
        state = "" if self.state == RUNNING else f", {self.state}"
        place = f", in {self.place}" if self.place else ""
        return (
            f"rank {self.rank} on {self.host} (pid {self.pid}): step {self.step}, {self.phase}{microbatch}, "
            f"silent for {self.silent_seconds:.1f} s{state}{place}"
        )


def with_stacks(report: RankReport, stacks: str) -> RankReport:
    """The report with what the rank's stacks tell."""
    frames = main_frames(stacks)
    if not frames:
        return report
    file, line, function = frames[0]
    return replace(report, place=f"{function} ({file}:{line})", own_work=not is_waiting(file, line))


def main_frames(stacks: str) -> list[tuple[str, int, str]]:
    """File, line and function of the main thread, innermost first, from what faulthandler wrote."""
    blocks = THREAD.split(stacks)[1:]
    mains = [block for block in blocks if "_run_module_as_main" in block or "/bin/poro" in block] or blocks
    found = FRAME.finditer(mains[-1]) if mains else ()
    return [(match["file"], int(match["line"]), match["function"]) for match in found]


def is_waiting(file: str, line: int) -> bool:
    """Whether this line of source waits for other ranks."""
    return file.endswith(WAITING_FILES) or bool(WAITING_CALL.search(linecache.getline(file, line)))


def find_behind(reports: Sequence[RankReport]) -> tuple[list[RankReport], str]:
    """The ranks that the others wait for, as far as it can be told, and how it was told."""
    odd = [report for report in reports if report.state != RUNNING]
    if odd:
        return odd, "they do not run"
    step = min(report.step for report in reports)
    late = [report for report in reports if report.step == step]
    if len(late) < len(reports):
        return late, "they are at an earlier step"
    busy = [report for report in reports if report.own_work]
    if busy and any(report.own_work is False for report in reports):
        return busy, "the others wait for them in a collective"
    first = min((report.phase_number, report.microbatch) for report in reports)
    late = [report for report in reports if (report.phase_number, report.microbatch) == first]
    if len(late) < len(reports):
        return late, "they are at an earlier point of the step"
    return list(reports), "all ranks stand at the same point"


def describe_hang(reports: Sequence[RankReport], missing: Sequence[int]) -> dict[str, Any]:
    """The hang as data."""
    behind, reason = find_behind(reports)
    return {
        "behind": [report.rank for report in behind],
        "hosts": sorted({report.host for report in behind}),
        "reason": reason,
        "missing": list(missing),
        "ranks": [asdict(report) for report in reports],
    }


def render_hang(reports: Sequence[RankReport], missing: Sequence[int], *, all_ranks: bool = False) -> str:
    """The hang in words: who is behind, then the others in a few lines, or each of them."""
    behind, reason = find_behind(reports)
    others = [report for report in reports if report not in behind]
    limit = min(report.limit_seconds for report in reports)
    lines = [f"hang: no sign of life for more than {limit:.1f} s. Behind ({reason}):"]
    lines += [f"  {report}" for report in (behind if all_ranks else behind[:LISTED])]
    if len(behind) > LISTED and not all_ranks:
        lines.append(f"  and {len(behind) - LISTED} more")
    if missing:
        lines.append(f"never heard of: ranks {', '.join(map(str, missing[:LISTED]))}{' ...' if len(missing) > LISTED else ''}")
    if all_ranks and others:
        lines += ["The others:", *(f"  {report}" for report in others)]
    elif others:
        places = Counter((report.step, report.phase) for report in others)
        lines += [f"{count} other ranks: step {step}, {phase}" for (step, phase), count in sorted(places.items())]
    return "\n".join(lines)
