"""Upload of what a run wrote offline, from a machine that reaches the wandb server: `poro wandb-sync RUN`.

`wandb sync` would upload the parts in RUN/wandb one by one, and give new numbers to the steps that a later part repeats. So the
numbers are taken from metrics.jsonl, which has every step, also of parts that a kill cut short, and knows which steps count; they
go through a wandb run of the same id. What wandb has is noted when an upload is done; after one that was interrupted the server
itself tells how far it came. A run that goes on may be uploaded again and again.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_poro.config import load_run
from megatron_poro.config.parse import to_plain
from megatron_poro.errors import WandbError
from megatron_poro.observe.account import Account
from megatron_poro.observe.jsonl import Record, read_records, those_that_count
from megatron_poro.observe.wandb import Target, WandbRun, build_target, check_wandb, first_line, has_key, open_after
from megatron_poro.observe.wandb_marks import Marks, load_marks, lock_uploads, save_marks
from megatron_poro.observe.wandb_news import alert_of, read_events

SETTLED_SECONDS = 1800.0
"""A newest step this old has its validation beside it, or gets none: wandb takes nothing for a step it has gone past."""
REPEATED = ("loss", "gradient_norm")
RETRIED = (OSError, WandbError)


@dataclass(frozen=True)
class Upload:
    """What wandb is to have.

    `records` are all there are, `counting` the ids of those that count; it was told of the first `num_told`. What it has after
    `last_step` (-1: anything) is to be taken back. `marks` hold once all is there.
    """

    records: Sequence[Record]
    counting: frozenset[int]
    num_told: int
    events: Sequence[Record]
    last_step: int
    marks: Marks


def sync_run(run_directory: Path) -> tuple[str, bool]:
    """Upload what wandb lacks of a run; returns what was done, in a line, and whether there was anything to do.

    Raises WandbError when there is nothing to upload from, no key, or no server that takes it.
    """
    target = _find_target(run_directory)
    with lock_uploads(run_directory, waits=False):
        return _sync(target, run_directory)


def _sync(target: Target, run_directory: Path) -> tuple[str, bool]:
    records = read_records(run_directory / "metrics.jsonl")
    if not records:
        raise WandbError(f"{run_directory}: no parts to upload: metrics.jsonl is missing or empty; was the run started?")
    upload = plan_upload(records, read_events(run_directory), load_marks(run_directory), now=time.time())
    new = upload.records[upload.num_told :]
    reach = f"wandb run {target.run_id} has steps up to {_newest_step(upload.records)}"
    if not new and not upload.events:
        return f"{run_directory}: nothing new; {reach}", False
    if not has_key():
        raise WandbError("no wandb key: `wandb login`, or set WANDB_API_KEY; nothing was uploaded")
    url = _send(target, upload)
    save_marks(run_directory, upload.marks)
    steps = sum(record["event"] == "step" and id(record) in upload.counting for record in new)
    parts = len(list((run_directory / "wandb").glob("offline-run-*")))
    return f"{run_directory}: {steps} steps uploaded ({parts} offline parts so far); {reach}: {url}", True


def watch_run(run_directory: Path, every_seconds: float) -> None:
    """Upload again and again until the run is done and all of it is there; a server that is away for a while is tried again."""
    while True:
        try:
            line, has_news = sync_run(run_directory)
            if has_news:
                print(line, flush=True)
            if _is_done(run_directory):
                return
        except RETRIED as error:
            print(f"warning: {error}; tried again in {every_seconds:g} s", file=sys.stderr, flush=True)
        time.sleep(every_seconds)


def plan_upload(records: Sequence[Record], events: Sequence[Record], marks: Marks, *, now: float) -> Upload:
    """What wandb lacks, given what it has. Pure."""
    stop = max(_settled(records, now), marks.records)
    known, counting = those_that_count(records[: marks.records]), those_that_count(records[:stop])
    new = records[marks.records : stop]
    last_step = _newest_step(known)
    back_to = min((record["step"] for record in new if record["event"] == "start"), default=last_step)
    return Upload(
        records=records[:stop],
        counting=frozenset(id(record) for record in counting),
        num_told=marks.records,
        events=events[marks.events :],
        last_step=last_step if _same(known, counting, back_to) else min(back_to, last_step),
        marks=Marks(stop, max(len(events), marks.events)),
    )


def _settled(records: Sequence[Record], now: float) -> int:
    """How many records can go: the newest step waits for its validation while the run goes on."""
    if records[-1]["event"] == "end" or now - records[-1]["time"] > SETTLED_SECONDS:
        return len(records)
    return max((n for n, record in enumerate(records) if record["event"] == "step"), default=len(records))


def _same(known: Sequence[Record], counting: Sequence[Record], back_to: int) -> bool:
    """Whether every step after `back_to` that wandb has was repeated with the same bits: then there is nothing to take back."""
    before, after = _curve(known, back_to), _curve(counting, back_to)
    return all(after.get(step) == values for step, values in before.items())


def _curve(records: Sequence[Record], back_to: int) -> dict[int, list[object]]:
    steps = (record for record in records if record["event"] == "step" and record["step"] > back_to)
    return {record["step"]: [record.get(name) for name in REPEATED] for record in steps}


def _newest_step(records: Sequence[Record]) -> int:
    return max((record["step"] for record in those_that_count(records) if record["event"] in ("step", "validation")), default=-1)


def _is_done(run_directory: Path) -> bool:
    last = read_records(run_directory / "metrics.jsonl")[-1]
    return bool(last["event"] == "end" and not last["stopped_by"])


def _find_target(run_directory: Path) -> Target:
    check_wandb()
    path = run_directory / "config.toml"
    if not path.is_file():
        raise WandbError(
            f"{run_directory}: no parts to upload: it has no config.toml; is it a run directory, and was the run started?"
        )
    config = load_run(path)
    if not config.observe.wandb_project:
        raise WandbError(
            f"{path}: observe.wandb_project is empty, so nothing is meant for wandb; set it there to upload all the same"
        )
    return build_target(config.observe, run_directory, to_plain(config))


def _send(target: Target, upload: Upload) -> str:
    """Upload; returns where it is shown. The local copy that wandb makes meanwhile goes with it."""
    with tempfile.TemporaryDirectory(prefix="poro-wandb-") as directory:
        try:
            run = open_after(replace(target, files=directory, trainer_pid=0), upload.last_step)
            _log(run, upload)
            for event in upload.events:
                if found := alert_of(event):
                    run.alert(*found)
            run.finish()
        except Exception as error:
            server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
            raise WandbError(
                f"{server} does not take the upload: {first_line(error)}; what it has is kept, try again later"
            ) from None
        return run.url


def _log(run: WandbRun, upload: Upload) -> None:
    account = Account()
    for number, record in enumerate(upload.records):
        account.add(record)
        if id(record) not in upload.counting:
            continue
        if number < upload.num_told:
            run.log_numbers(record, account)  # what the server lacks all the same
        else:
            run.log(record, account)
