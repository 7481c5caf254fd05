"""Where a run's checkpoints lie and where one stands; needs no torch, so a launcher or a login node can ask."""

import json
import re
from pathlib import Path
from typing import Any

from megatron_poro.errors import CheckpointError

NAME = re.compile(r"step_\d{8,}")


def checkpoint_path(run_directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return run_directory / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(run_directory: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first; one that was not finished has no such name and does not count."""
    found = (run_directory / "checkpoints").glob("step_*")
    return sorted((p for p in found if NAME.fullmatch(p.name) and (p / "state.json").is_file()), key=lambda p: int(p.name[5:]))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state.json. Raises CheckpointError when it is missing or damaged."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if f"step_{state['step']:08d}" != checkpoint.name or {"samples", "tokens", "data", "ledger"} - state.keys():
            raise ValueError("it is not this checkpoint's")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint / 'state.json'}: cannot be read ({error}); move the folder away to resume from the one before"
        ) from None
    return state
