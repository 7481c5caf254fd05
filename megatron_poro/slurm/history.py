"""What the notes of a launch tell: its attempts, which of them got nowhere, which nodes are left out. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_poro.observe import Record

RESETS = ("launch", "release")
"""Notes from which on attempts are counted anew."""
MOST_BEHIND = 9
"""Of so many ranks behind, more than a node's, no node is to blame."""


@dataclass(frozen=True)
class Attempt:
    """One element's time on its nodes. `step_after` is the newest checkpoint's when the next began, or when it ended.

    `num_events` is how many events the run had when it began: clocks of nodes may differ, the order of lines does not.
    `end` and `code` are None for one that could not say so: killed with its node, or still running.
    """

    job: str
    restart: int
    begin: float
    end: float | None
    code: int | None
    step_before: int
    step_after: int
    nodes: tuple[str, ...]
    devices: int
    num_events: int
    counts: bool

    @property
    def got_on(self) -> bool:
        """Whether there was a newer checkpoint after it."""
        return self.step_after > self.step_before


def attempts(notes: Sequence[Record], newest_step: int) -> list[Attempt]:
    """All attempts, oldest first. `newest_step` is where the newest checkpoint stands now (0: none)."""
    begins = [n for n, record in enumerate(notes) if record["event"] == "begin"]
    found = []
    for n, following in zip(begins, [*begins, len(notes)][1:], strict=True):
        begin = notes[n]
        ends = (record for record in notes[n:following] if record["event"] in ("end", "requeue") and record["job"] == begin["job"])
        end = next(ends, None)
        after = notes[following]["step"] if following < len(notes) else newest_step
        found.append(
            Attempt(
                job=begin["job"],
                restart=begin["restart"],
                begin=begin["time"],
                end=end["time"] if end else None,
                code=end.get("code") if end else None,
                step_before=begin["step"],
                step_after=after,
                nodes=tuple(begin["nodes"]),
                devices=begin["devices"],
                num_events=begin["num_events"],
                counts=not (end and end["event"] == "requeue"),
            )
        )
    return found


def num_fruitless(notes: Sequence[Record], newest_step: int) -> int:
    """Attempts in a row, up to now, after which there was no newer checkpoint. Those that a bad node cut short do not count."""
    since = max((n for n, record in enumerate(notes) if record["event"] in RESETS), default=-1) + 1
    count = 0
    for attempt in reversed([each for each in attempts(notes[since:], newest_step) if each.counts]):
        if attempt.got_on:
            break
        count += 1
    return count


def num_requeued(notes: Sequence[Record]) -> int:
    """Attempts in a row, up to the one that runs, that were queued again for a bad node."""
    since = max((n for n, record in enumerate(notes) if record["event"] in (*RESETS, "end")), default=-1) + 1
    return sum(record["event"] == "requeue" for record in notes[since:])


def done_shares(notes: Sequence[Record], count: int) -> set[int]:
    """The shares of a command that are done, of those into which it is divided now: one of 2 is none of 4."""
    return {record["index"] for record in notes if record["event"] == "done" and record.get("count", count) == count}


def excluded(notes: Sequence[Record]) -> dict[str, str]:
    """The nodes that are left out, each with the reason, oldest first; a launch takes them back."""
    nodes: dict[str, str] = {}
    for record in notes:
        if record["event"] == "launch":
            nodes.clear()
        elif record["event"] == "exclude":
            nodes[record["node"]] = record["reason"]
        elif record["event"] == "include":
            nodes.pop(record["node"], None)
    return nodes


def hold_reason(notes: Sequence[Record]) -> str:
    """Why the array is held; empty when it is not."""
    for record in reversed(notes):
        if record["event"] == "hold":
            return str(record["reason"])
        if record["event"] in (*RESETS, "begin"):
            return ""
    return ""


def suspects(events: Sequence[Record], first: int) -> dict[str, str]:
    """Hosts that the run's events from number `first` on blame, with the reason.

    The ranks behind in a hang and those whose weights differ speak against their host at once; an end by a signal only when the
    failure before that was the same host's, for a process is killed for many reasons that are not its node's.
    """
    found, before = {}, ("", "")
    for n, event in enumerate(events):
        if event["event"] not in ("failed", "hang"):
            continue
        kind, hosts = _blamed(event)
        if n >= first and (kind in ("hang", "weights") or (kind == "signal" and before == (kind, hosts[0]))):
            found.update(dict.fromkeys(hosts, _told(event)))
        before = (kind, hosts[0]) if hosts else before
    return found


def _blamed(event: Record) -> tuple[str, list[str]]:
    """Kind and hosts of a failure. Of a hang, `failed` names the rank silent longest, `hang` those that others waited for."""
    if event["event"] == "hang":
        return "hang", [str(host) for host in event["hosts"]] if len(event["behind"]) < MOST_BEHIND else []
    return ("", []) if event["kind"] == "hang" else (str(event["kind"]), [str(event["host"])])


def _told(event: Record) -> str:
    if event["event"] == "hang":
        return f"ranks {', '.join(map(str, event['behind']))} hung: {event['reason']}"
    return f"rank {event['rank']} on {event['host']}, exit code {event['code']}: {event['message']}"


def last_failure(events: Sequence[Record], first: int = 0) -> str:
    """What a start failed of last, in words, going by the events from number `first` on; empty when none did."""
    failed = [event for event in events[first:] if event["event"] in ("failed", "hang")]
    return _told(failed[-1]) if failed else ""
