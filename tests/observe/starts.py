"""Starts of a run that does not train: a process that gives records to the sinks of a run directory, and may be killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_poro.config import load_run, save_run
from tests.runs import REPOSITORY, write_run

PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from megatron_poro.config import load_run
from megatron_poro.config.parse import to_plain
from megatron_poro.observe import open_sinks
run = Path(sys.argv[1])
config = load_run(run / "config.toml")
sinks = open_sinks(config.observe, run, to_plain(config))
for record in json.load(sys.stdin):
    sinks.write(record)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sinks.close()
"""


def make_run(folder: Path, **observe: Any) -> Path:
    """A run directory with its config.toml, as a start leaves it."""
    (folder / "run").mkdir()
    path = write_run(folder / "run.toml", {"observe": {"wandb_project": "poro", **observe}})
    save_run(load_run(path), folder / "run" / "config.toml")
    return folder / "run"


def start(
    run: Path, records: list[dict[str, Any]], environment: Mapping[str, str], *, killed: bool = False
) -> "subprocess.CompletedProcess[str]":
    """One start that writes these records and ends, or is killed after the last."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run), "killed" if killed else "ends"],
        input=json.dumps(records),
        env={**without_wandb(run), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=REPOSITORY,
    )
    assert done.returncode == (-9 if killed else 0), done.stderr
    return done


def without_wandb(home: Path) -> dict[str, str]:
    """This environment without a key or settings for wandb."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "SLURM"))}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}


def started(step: int, **values: Any) -> dict[str, Any]:
    return {"event": "start", "step": step, "time": time.time(), "origin": "somewhere", "layout": "1", "versions": {}, **values}


def steps(first: int, last: int, *, plus: float = 0.0) -> list[dict[str, Any]]:
    """Records of the steps from `first` to `last`, whose loss is the step's number and `plus`."""
    numbers = {"gradient_norm": 1.0, "learning_rate": 1e-3, "updated": True, "seconds": 1.0}
    return [
        {"event": "step", "step": n, "time": time.time(), "loss": n + plus, "losses": {"fi": n + plus}, **numbers}
        for n in range(first, last + 1)
    ]


def validated(step: int, loss: float) -> dict[str, Any]:
    return {"event": "validation", "step": step, "time": time.time(), "losses": {"fi": loss}, "perplexities": {"fi": 1.0}}


def ended(step: int) -> dict[str, Any]:
    return {"event": "end", "step": step, "time": time.time(), "stopped_by": ""}
