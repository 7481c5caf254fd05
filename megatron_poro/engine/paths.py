"""Where a run's checkpoints lie, which are kept, and where one stands; needs no torch, so a launcher or a login node can ask."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

from megatron_poro.errors import CheckpointError

NAME = re.compile(r"step_(\d{8,})")
_PARTIAL = "partial-"


def checkpoint_path(run_directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return run_directory / "checkpoints" / f"step_{step:08d}"


def partial_path(checkpoint: Path) -> Path:
    """Where a checkpoint lies until it is whole."""
    return checkpoint.with_name(_PARTIAL + checkpoint.name)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name tells."""
    return int(checkpoint.name.removeprefix("step_"))


def list_checkpoints(run_directory: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; one that was not finished has no such name and does not count."""
    found = (run_directory / "checkpoints").glob("step_*")
    return sorted((path for path in found if NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state.json. Raises CheckpointError when it is missing or damaged."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if f"step_{state['step']:08d}" != checkpoint.name or {"samples", "tokens", "data", "ledger"} - state.keys():
            raise ValueError("it is not this checkpoint's")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / 'state.json'}: cannot be read ({error})") from None
    return state


def is_complete(checkpoint: Path) -> bool:
    """Whether every file is there with its size, going by files.json: a look, where reading all of it would take long."""
    try:
        listed = json.loads((checkpoint / "files.json").read_text(encoding="utf-8"))["files"]
        return bool(listed) and all((checkpoint / name).stat().st_size == entry["bytes"] for name, entry in listed.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def find_newest(run_directory: Path) -> Path | None:
    """The newest checkpoint that is whole."""
    return next((path for path in reversed(list_checkpoints(run_directory)) if is_complete(path)), None)


def set_aside(checkpoint: Path) -> Path:
    """Give a damaged checkpoint a name that does not count; nothing of it is deleted. Returns the new path."""
    damaged = checkpoint.with_name(f"damaged-{checkpoint.name}-{time.time_ns()}")
    checkpoint.rename(damaged)
    return damaged


def remove_partials(checkpoints: Path) -> list[str]:
    """Delete what interrupted saves and deletions left; what could not be deleted, with the reason."""
    problems = []
    for leftover in sorted(checkpoints.glob(f"{_PARTIAL}*")):
        try:
            _delete(leftover)
        except OSError as error:
            problems.append(f"{leftover}: {error}")
    return problems


def remove_old_checkpoints(run_directory: Path, *, keep_last: int, keep_every_steps: int) -> None:
    """Delete all but the newest `keep_last` checkpoints (0 keeps all) and those of every `keep_every_steps`-th step (0: none)."""
    for old in list_checkpoints(run_directory)[: -keep_last or None] if keep_last else ():
        if not (keep_every_steps and step_of(old) % keep_every_steps == 0):
            doomed = partial_path(old)
            old.rename(doomed)
            _delete(doomed)


def _delete(path: Path) -> None:
    """Delete a folder, or a link to one that was moved elsewhere: what it points to is its owner's."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
