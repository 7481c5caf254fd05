"""What a launch keeps in RUN/slurm: the job it stands for, and a line for everything that its elements do.

`job.json` is written by `poro launch`; `elements.jsonl` is appended to by the elements, and by `poro launch`, `stop` and `cancel`.
"""

import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_poro.errors import LaunchError
from megatron_poro.observe import JsonLinesSink, Record, read_records


@dataclass(frozen=True)
class Job:
    """What was launched: a run, or the steps of a pipeline that are other commands (`run_file` is empty then).

    `ids` are Slurm's: one of an array or a requeued job, several of a chain. `gpus_per_rank` is what a rank counts as in GPU-hours.
    `after` are directories of launches that must be done.
    """

    name: str
    directory: str
    run_file: str
    cluster: str
    mode: str
    ids: tuple[str, ...]
    elements: int
    nodes: int
    tasks_per_node: int
    partition: str
    brake: int
    time: float
    script: str
    gpus_per_rank: float = 1.0
    after: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where what belongs to the launch lies."""
        return folder_of(Path(self.directory))


def count(number: int, what: str) -> str:
    """Number and noun: 1 element, 2 elements."""
    return f"{number} {what}{'s' * (number != 1)}"


def folder_of(directory: Path) -> Path:
    """The folder of a launch inside a run directory."""
    return directory / "slurm"


def save_job(job: Job) -> None:
    """Write job.json, all of it or nothing."""
    path = job.folder / "job.json"
    partial = path.with_name(f".job.{socket.gethostname()}-{os.getpid()}.partial")  # the first element may write it too
    partial.write_text(json.dumps(asdict(job), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def load_job(directory: Path) -> Job | None:
    """The launch of a run directory; None when it was never launched. Raises LaunchError when its file is damaged."""
    path = folder_of(directory) / "job.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Job(**{**plain, "ids": tuple(plain["ids"]), "after": tuple(plain["after"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LaunchError(f"{path}: cannot be read ({error}); move it away and launch again") from None


def note(directory: Path, event: str, **values: Any) -> Record:
    """Append a line to elements.jsonl; a full disk costs the line, not the element."""
    record = {"event": event, "time": time.time(), **values}
    path = folder_of(directory) / "elements.jsonl"
    try:
        with contextlib.closing(JsonLinesSink(path)) as sink:
            sink.write(record)
    except OSError as error:
        print(f"warning: {path}: {error.strerror}; {json.dumps(record)} is not noted", file=sys.stderr, flush=True)
    return record


def read_notes(directory: Path) -> list[Record]:
    """The lines of elements.jsonl, oldest first; a torn one is left out."""
    return read_records(folder_of(directory) / "elements.jsonl")
