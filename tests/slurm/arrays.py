"""Arrays of tiny runs on two nodes of a cluster, and what is asked of them while they run."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_poro.engine.paths import list_checkpoints, step_of
from megatron_poro.observe import read_metrics
from megatron_poro.slurm.records import read_notes
from tests.runs import command, write_run, write_tokens
from tests.slurm.cluster import Slurm

FAULTS = {"hang_factor": 5.0, "hang_least_seconds": 6.0, "weight_hash_every_steps": 0}


def run_file(folder: Path, *, steps: int, run: str = "run", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_tokens(folder)
    changes = {"faults": FAULTS, "checkpoint": {"save_every_steps": 5, "keep_last": 3}, **changes}
    changes = {"run_directory": run, "parallel": {"tensor": 2}, "training": {"steps": steps}, **changes}
    return write_run(folder / "run.toml", changes)


def launch(slurm: Slurm, path: Path, *words: str, **environment: str) -> str:
    """The id of an array of elements on two nodes."""
    words = (*words, "--cluster", "test", "--nodes", "2")
    said = slurm.run(*command("launch", path, *words), env={**slurm.environment, "OMP_NUM_THREADS": "1", **environment}).stdout
    return said.split()[1].rstrip(":,")


def status(slurm: Slurm, run: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(slurm.run(*command("status", "--json", run)).stdout)
    return answer


def wait_until(holds: Callable[[], Any], what: str, *, seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := holds()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)
    return answer


def step_now(run: Path) -> int:
    steps = [record["step"] for record in read_metrics(run / "metrics.jsonl") if record["event"] == "step"]
    return max(steps, default=0)


def num_notes(run: Path, event: str) -> int:
    return sum(record["event"] == event for record in read_notes(run))


def trains_on(slurm: Slurm, run: Path, *, after: int) -> str:
    """The element that runs, once there were more than `after` beginnings, and a checkpoint since the last of them."""

    def element() -> str | None:
        begins = [record for record in read_notes(run) if record["event"] == "begin"]
        if len(begins) <= after or not list_checkpoints(run) or step_of(list_checkpoints(run)[-1]) <= begins[-1]["step"]:
            return None
        return str(begins[-1]["job"])

    return str(wait_until(element, f"training after {after} beginnings"))


def ranks(run: Path) -> dict[int, int]:
    """The processes that train, by rank: the children of those that srun started."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pairs = (folder / "environ").read_text(errors="replace").split("\0")
            environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
        except OSError:
            continue
        if "train" in words and str(run / "slurm" / "run.toml") in words and "PORO_HEARTBEATS" in environment:
            found[int(environment["SLURM_PROCID"])] = int(folder.name)
    return found
