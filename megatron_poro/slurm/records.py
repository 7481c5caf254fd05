"""What a launch keeps in RUN/slurm: the job it stands for, and a line for everything that its elements do.

`job.json` is written by `poro launch` alone; `elements.jsonl` is appended to by the elements, which run one at a time.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_poro.errors import LaunchError

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What was launched: a run, or the steps of a pipeline that are other commands (`run_file` is empty then).

    `ids` are Slurm's: one of an array or a requeued job, several of a chain. `after` are directories of launches that must be done.
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
    after: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where what belongs to the launch lies."""
        return folder_of(Path(self.directory))


def folder_of(directory: Path) -> Path:
    """The folder of a launch inside a run directory."""
    return directory / "slurm"


def save_job(job: Job) -> None:
    """Write job.json, all of it or nothing."""
    path = job.folder / "job.json"
    partial = path.with_suffix(".partial")
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
        with open(path, "ab", buffering=0) as file:
            file.write(b"\n" * _is_torn(path) + json.dumps(record).encode() + b"\n")
            os.fsync(file.fileno())
    except OSError as error:
        print(f"warning: {path}: {error.strerror}; {json.dumps(record)} is not noted", file=sys.stderr, flush=True)
    return record


def _is_torn(path: Path) -> bool:
    """Whether a kill or a full disk left the last line without its end."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) not in (b"", b"\n")


def read_notes(directory: Path) -> list[Record]:
    """The lines of elements.jsonl, oldest first; a torn one is left out."""
    return read_lines(folder_of(directory) / "elements.jsonl")


def read_lines(path: Path) -> list[Record]:
    """The JSON objects of a file of lines; none when it is not there, without those that were torn by a kill."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "event" in record:
            records.append(record)
    return records
