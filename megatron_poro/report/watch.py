"""`poro watch`: a run in the terminal, live. Fits 80 columns, works over ssh, on a run that runs and on one that is over."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from megatron_poro.observe import Record
from megatron_poro.observe.jsonl import FollowedFile, those_that_count
from megatron_poro.observe.words import format_seconds
from megatron_poro.slurm.status import Status, read_status

CURVE_HEIGHT = 9
RANKS_EVERY_SECONDS = 30.0
"""Between looks at the ranks' heartbeats: one file each."""
NUM_EVENTS = 6
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character, four rows of two dots."""


@dataclass
class Watched:
    """What was read of a run so far."""

    directory: Path
    metrics: FollowedFile
    events: FollowedFile
    records: list[Record] = field(default_factory=list)
    happened: list[Record] = field(default_factory=list)
    behind: str = ""
    looked: float = -math.inf

    def refresh(self) -> None:
        """Read what is new."""
        new = self.metrics.read_new()
        happened = [record for record in (*new, *self.events.read_new()) if record["event"] in _WORDS]
        self.happened = sorted((*self.happened, *happened), key=lambda record: float(record["time"]))[-100:]
        self.records = those_that_count([*self.records, *new])
        if time.monotonic() - self.looked > RANKS_EVERY_SECONDS:
            self.behind, self.looked = describe_ranks(self.directory), time.monotonic()


def open_run(directory: Path) -> Watched:
    """A run to be watched."""
    return Watched(directory, FollowedFile(directory / "metrics.jsonl"), FollowedFile(directory / "events.jsonl"))


def watch(directory: Path, *, every_seconds: float, once: bool) -> None:
    """Show the run until Ctrl-C or its end; once, when that is asked for or nobody looks. Raises PoroErrors when it is none."""
    console = Console()
    run = open_run(directory)
    run.refresh()
    if once or not console.is_terminal:
        console.print(render(run, read_status(directory), width=console.width))
        return
    with (
        Live(render(run, read_status(directory), width=console.width), console=console, screen=True) as live,
        suppress(KeyboardInterrupt),
    ):
        while (status := read_status(directory)).state != "done":
            time.sleep(every_seconds)
            run.refresh()
            live.update(render(run, status, width=console.width), refresh=True)
    console.print(render(run, read_status(directory), width=console.width))


def render(run: Watched, status: Status, *, width: int) -> RenderableType:
    """The screen: where the run stands, its curve, its rates, what happened last."""
    steps = [record for record in run.records if record["event"] == "step"]
    return Group(
        _headline(status),
        _bar(status, width),
        Text(),
        *draw_curve([(record["step"], record["loss"]) for record in steps], width=width, height=CURVE_HEIGHT),
        Text(),
        _facts(run, status, steps),
        Text(),
        *(Text(line, overflow="ellipsis", no_wrap=True) for line in _last_events(run.happened)),
    )


def _headline(status: Status) -> RenderableType:
    colour = {"running": "green", "done": "green", "held": "red", "waiting": "yellow"}.get(status.state, "default")
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(Path(status.directory).name, style="bold").append("  ").append(status.state, style=f"bold {colour}")
    if status.element:
        line.append(f"  element {status.element}, {status.elements_waiting} waiting")
    return line.append(f"  {status.held or status.queue}")


def _bar(status: Status, width: int) -> RenderableType:
    share = status.step / status.num_steps if status.num_steps else 0.0
    told = f" {share:6.1%}  step {status.step:,} of {status.num_steps:,}"
    size = max(width - len(told), 8)
    done = round(size * share)
    return Text("━" * done, style="green").append("━" * (size - done), style="dim").append(told, style="default")


def _facts(run: Watched, status: Status, steps: Sequence[Record]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for name, value in _lines(run, status, steps[-1] if steps else {}):
        if value:
            table.add_row(Text(name, style="dim"), Text(value))
    return table


def _lines(run: Watched, status: Status, last: Record) -> Iterator[tuple[str, str]]:
    yield "tokens", f"{status.tokens:,} of {status.num_tokens:,}"
    yield "loss", f"{status.loss:.4f}" if status.loss is not None else ""
    yield "by source", "  ".join(f"{name} {loss:.3f}" for name, loss in last.get("losses", {}).items())
    held_out = next((record for record in reversed(run.records) if record["event"] == "validation"), None)
    if held_out:
        yield (
            "held out",
            "  ".join(f"{name} {loss:.3f}" for name, loss in held_out["losses"].items()) + f"  (step {held_out['step']:,})",
        )
    yield "rate", _rate(status, last)
    left = status.seconds_left
    yield (
        "time left",
        f"{format_seconds(left)}, until {time.strftime('%a %d %b %H:%M', time.localtime(time.time() + left))}" if left else "",
    )
    yield (
        "last save",
        f"step {status.saved_step:,}, {format_seconds(status.saved_ago)} ago" if status.saved_ago is not None else "none",
    )
    left_hours = f", {status.gpu_hours_left:,.1f} to go" if status.gpu_hours_left is not None else ""
    yield "GPU-hours", f"{status.gpu_hours_used:,.1f} used{left_hours}" if status.gpu_hours_used else ""
    yield "restarts", f"{status.restarts}" + (f"; {status.last_failure}" if status.last_failure else "")
    yield "excluded", ", ".join(status.excluded)
    yield "ranks", run.behind


def _rate(status: Status, last: Record) -> str:
    if not status.tokens_per_second:
        return ""
    parts = [f"{status.tokens_per_second:,.0f} tokens/s"]
    if "model_tflops_per_device" in last:
        parts.append(f"{last['model_tflops_per_device']:.3g} TFLOP/s a device")
    if "mfu" in last:
        parts.append(f"MFU {last['mfu']:.1%}")
    return ", ".join([*parts, f"{last['seconds']:.3g} s a step"])


def describe_ranks(directory: Path) -> str:
    """Which ranks are behind, from their heartbeats; where all are, when none is; empty when there are none."""
    found = []
    for path in (directory / "heartbeats").glob("rank_*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            beat = json.loads(path.read_text(encoding="utf-8"))
            found.append(
                (int(beat["step"]), int(beat["rank"]), str(beat["host"]), str(beat["phase"]), float(beat["silent_seconds"]))
            )
    if not found:
        return ""
    furthest = max(step for step, *_ in found)
    late = sorted(beat for beat in found if beat[0] < furthest)
    if not late:
        return f"all {len(found)} at step {furthest:,}"
    told = "; ".join(f"rank {rank} on {host} at step {step:,} ({phase})" for step, rank, host, phase, _ in late[:3])
    return f"{len(late)} of {len(found)} behind step {furthest:,}: {told}"


def _last_events(happened: Sequence[Record]) -> list[str]:
    return [
        f"{time.strftime('%d %b %H:%M:%S', time.localtime(record['time']))}  {_tell(record)}" for record in happened[-NUM_EVENTS:]
    ]


def _tell(record: Record) -> str:
    """An event in words."""
    step = f"step {record['step']:,}" if "step" in record else ""
    return f"{step}{_WORDS[record['event']](record)}"


def _start_in_words(record: Record) -> str:
    left_out = record.get("left_out")
    return f": goes on{f', without samples {left_out[0]:,}-{left_out[1]:,}' if left_out else ''}"


_WORDS: dict[str, Callable[[Record], str]] = {
    "start": _start_in_words,
    "validation": lambda it: " validated: " + "  ".join(f"{name} {loss:.4f}" for name, loss in it["losses"].items()),
    "checkpoint": lambda it: f" saved in {format_seconds(it['seconds'])}",
    "checkpoint_failed": lambda it: f" was not saved: {it['problem']}",
    "bad_step": lambda it: f" left out: {it['reason']}",
    "stragglers": lambda it: f": slow ranks {', '.join(str(one['rank']) for one in it['ranks'])}",
    "end": lambda it: f": stopped by {it['stopped_by']}" if it["stopped_by"] else ": done",
    "failed": lambda it: f"rank {it['rank']} on {it['host']} failed with {it['code']}: {it['message']}",
    "hang": lambda it: f"ranks {', '.join(map(str, it['behind']))} hung: {it['reason']}",
}
"""Events that are told, in words that follow their step."""


def draw_curve(points: Sequence[tuple[int, float]], *, width: int, height: int) -> list[Text]:
    """The curve in braille dots with the scale at its left: lines of at most `width` characters."""
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if len(points) < 2:
        return []
    low, high = min(value for _, value in points), max(value for _, value in points)
    labels = [f"{high:.3f}", f"{low:.3f}"]
    margin = max(map(len, labels)) + 1
    columns, rows = 2 * (width - margin - 1), 4 * height
    cells = [[0] * (width - margin - 1) for _ in range(height)]
    first, last = points[0][0], points[-1][0]
    for step, value in points:
        x = round((step - first) / max(last - first, 1) * (columns - 1))
        y = round((high - value) / ((high - low) or 1.0) * (rows - 1))
        cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
    lines = []
    for n, row in enumerate(cells):
        label = labels[0] if n == 0 else labels[1] if n == height - 1 else ""
        lines.append(Text(label.rjust(margin) + "│", style="dim").append("".join(chr(0x2800 + bits) for bits in row), style="cyan"))
    axis = f"{first:,}".ljust(width - margin - 1 - len(f"{last:,}")) + f"{last:,}"
    return [*lines, Text(" " * (margin + 1) + axis, style="dim")]
