"""How much of a run wandb has: counts of lines, in RUN/wandb/uploaded.json. Never ahead of what is uploaded. And who uploads."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_poro.errors import WandbError


@dataclass(frozen=True)
class Marks:
    """Records of metrics.jsonl and events of events.jsonl that wandb has."""

    records: int = 0
    events: int = 0


def load_marks(run_directory: Path) -> Marks:
    """What is noted; nothing when the note is missing or damaged."""
    try:
        return Marks(**json.loads(_path(run_directory).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Marks()


def save_marks(run_directory: Path, marks: Marks) -> None:
    """Note it, all or nothing."""
    path = _path(run_directory)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(marks)), encoding="utf-8")
    partial.replace(path)


@contextlib.contextmanager
def lock_uploads(run_directory: Path, *, waits: bool) -> Iterator[None]:
    """Be the only one who uploads this run. Raises WandbError when another does, unless it `waits`."""
    path = run_directory / "wandb" / "lock"
    path.parent.mkdir(exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            raise WandbError(
                f"{run_directory}: the run itself or another wandb-sync is uploading it; there is nothing to do"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def _path(run_directory: Path) -> Path:
    return run_directory / "wandb" / "uploaded.json"
