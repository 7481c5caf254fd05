"""What wandb is told beside numbers: alerts, facts about a start, checkpoints as references. No weights, diffs or secrets."""

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_poro.observe.jsonl import Record, read_records

Alert = tuple[str, str, str]
"""Title, text and level of an alert."""
INFO, WARN, ERROR = "INFO", "WARN", "ERROR"


def alert_of(record: Record) -> Alert | None:
    """What a record, or a line of events.jsonl, is worth alerting people about; None for most."""
    tell = _ALERTS.get(record["event"])
    return tell(record) if tell else None


def _start(record: Record) -> Alert | None:
    step = record["step"]
    if left_out := record.get("left_out"):
        return "rollback", f"back to step {step} ({record['origin']}), without samples {left_out[0]}-{left_out[1]}", WARN
    return ("restart", f"goes on from step {step} ({record['origin']})", INFO) if step else None


def _bad_step(record: Record) -> Alert:
    return "step left out", f"step {record['step']}: {record['reason']}", WARN


def _stragglers(record: Record) -> Alert:
    ranks = ", ".join(f"rank {rank['rank']} ({rank['name']}): {rank['measure']}" for rank in record["ranks"])
    return "slow ranks", f"step {record['step']}: {ranks}", WARN


def _checkpoint_failed(record: Record) -> Alert:
    return "checkpoint not saved", f"{record['path']}: {record['problem']}", ERROR


def _end(record: Record) -> Alert:
    stopped_by = record["stopped_by"]
    if stopped_by:
        return "stopped", f"at step {record['step']} by {stopped_by}; it is saved", INFO
    return "done", f"at step {record['step']}", INFO


def _failed(event: Record) -> Alert:
    return "failure", f"rank {event['rank']} on {event['host']}, exit code {event['code']}: {event['message']}", ERROR


def _hang(event: Record) -> Alert:
    ranks = ", ".join(map(str, event["behind"][:8]))
    return "hang", f"behind: ranks {ranks} on {', '.join(event['hosts'][:8])} ({event['reason']})", ERROR


_ALERTS: dict[str, Callable[[Record], Alert | None]] = {
    "start": _start,
    "bad_step": _bad_step,
    "stragglers": _stragglers,
    "checkpoint_failed": _checkpoint_failed,
    "end": _end,
    "failed": _failed,
    "hang": _hang,
}


def read_events(run_directory: Path) -> list[Record]:
    """The run's events.jsonl: failures and hangs of its starts."""
    return read_records(run_directory / "events.jsonl")


def facts_of(start: Record) -> dict[str, Any]:
    """What a `start` record tells of the machine and the versions, as configuration of the wandb run."""
    return {"start": {key: value for key, value in start.items() if key not in ("event", "time")}}


def add_checkpoint(wandb: Any, run: Any, record: Record) -> None:
    """Log a checkpoint as references to its files: nothing of them is uploaded or read, but the list of hashes that lies there."""
    checkpoint = Path(record["path"])
    try:
        digest = hashlib.sha256((checkpoint / "files.json").read_bytes()).hexdigest()
    except OSError:
        return  # it has been deleted since, as old ones are
    metadata = {"step": record["step"], "ledger": record["ledger"], "files_json_sha256": digest}
    artifact = wandb.Artifact(f"checkpoint-{run.id}", type="checkpoint", metadata=metadata)
    # The hash in the name makes a checkpoint that was saved again after a rollback another version.
    artifact.add_reference(f"file://{checkpoint.absolute()}", name=f"{checkpoint.name}-{digest[:12]}", checksum=False)
    run.log_artifact(artifact, aliases=["latest", f"step-{record['step']}"])


def git_commit() -> str | None:
    """The commit of the working directory; None where there is none."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
