"""The runs of a campaign of faults: written, started, waited for, and compared with runs that were left alone. For faults.py."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tomli_w

from data_indexing.writer import IndexedWriter
from megatron_poro.engine.paths import list_checkpoints, read_state, step_of
from megatron_poro.observe import read_metrics

STEPS, SAVE_EVERY, KEEP_LAST = 32, 4, 3
LAYOUTS: dict[str, dict[str, int]] = {"TP2": {"tensor": 2}, "DP2": {"data": 2}, "PP2": {"pipeline": 2}, "one process": {}}
LONGEST_SECONDS = 600


class CampaignError(Exception):
    """The run did something else than it must."""


@dataclass
class Life:
    """One run under attack."""

    folder: Path
    file: Path
    layout: str
    nan: str
    reference: Path
    disk: Path | None = None
    damaged: list[set[str]] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    @property
    def num_ranks(self) -> int:
        """Processes of its layout."""
        return int(np.prod([*LAYOUTS[self.layout].values(), 1]))


def start(
    file: Path, faults: str, during: Callable[["subprocess.Popen[str]"], None] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`poro train` with PORO_FAULT; `during` gets the process while it runs."""
    command = [sys.executable, "-m", "megatron_poro", "train", str(file)]
    environment = {**os.environ, "PORO_FAULT": faults, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        if during:
            during(process)
        out, err = process.communicate(timeout=LONGEST_SECONDS)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def expect(done: "subprocess.CompletedProcess[str]", code: int, what: str) -> None:
    """Raise CampaignError when it ended otherwise."""
    if done.returncode != code:
        raise CampaignError(f"{what}: exit code {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}")


def newest_step(life: Life) -> int:
    """The step of the newest checkpoint."""
    return max((step_of(path) for path in list_checkpoints(life.run)), default=0)


def wait_for_step(run: Path, step: int, process: "subprocess.Popen[str]") -> None:
    """Return once the metrics reach `step`, or the process ended."""
    metrics, began = run / "metrics.jsonl", time.monotonic()
    size = metrics.stat().st_size if metrics.exists() else 0
    while process.poll() is None and time.monotonic() < began + LONGEST_SECONDS:
        if metrics.exists():
            with open(metrics, "rb") as file:
                file.seek(size)
                if any(f'"event": "step", "step": {n},'.encode() in file.read() for n in (step,)):
                    return
        time.sleep(0.01)


def wait_for_end(life: Life) -> None:
    """Return once nobody holds the run: ranks end by themselves when their launcher was killed."""
    with open(life.run / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    time.sleep(1.0)


def differences(life: Life) -> list[str]:
    """In what a finished run is not the one that was left alone."""
    problems = []
    if losses_of(life.run) != losses_of(life.reference):
        problems.append("losses or gradient norms differ")
    ours, theirs = (list_checkpoints(run)[-1] for run in (life.run, life.reference))
    mine, wanted = read_state(ours), read_state(theirs)
    problems += [f"{key} of state.json differs" for key in wanted if key not in ("layout",) and mine.get(key) != wanted[key]]
    if tensors_of(ours) != tensors_of(theirs):
        problems.append("weights or optimizer differ")
    return problems


def leftovers(life: Life) -> list[str]:
    """Files that should not be there, or are not there and should be."""
    folder = life.run / "checkpoints"
    problems = []
    if left := sorted(path.name for path in folder.glob("partial-*")):
        problems.append(f"left over: {left}")
    steps = [step_of(path) for path in list_checkpoints(life.run)]
    if len(steps) != KEEP_LAST or steps[-1] != STEPS:
        problems.append(f"checkpoints kept: {steps}")
    aside = sorted(sorted(path.name for path in damaged.iterdir()) for damaged in folder.glob("damaged-*"))
    if aside != sorted(map(sorted, life.damaged)):
        problems.append(f"damaged checkpoints set aside: {len(aside)}, damaged: {len(life.damaged)}, or files of them are gone")
    for path in list_checkpoints(life.run):
        listed = json.loads((path / "files.json").read_text())["files"]
        problems += [
            f"{path.name}/{name} is not as files.json says"
            for name, entry in listed.items()
            if sha256(path / name) != entry["sha256"]
        ]
    return problems


def losses_of(run: Path) -> dict[int, tuple[float, float, bool]]:
    """Loss, gradient norm and whether there was an update, of every step that counts; NaN as text, to be comparable."""
    steps = [record for record in read_metrics(run / "metrics.jsonl") if record["event"] == "step"]
    return {r["step"]: (str(r["loss"]), str(r["gradient_norm"]), r["updated"]) for r in steps}  # type: ignore[misc]


def tensors_of(checkpoint: Path) -> dict[str, str]:
    """Hashes of the tensor files, which hold weights and optimizer."""
    return {path.name: sha256(path) for path in sorted(checkpoint.glob("*.distcp"))}


def sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_sources(folder: Path) -> None:
    """Two sources of predictable token walks."""
    rng = np.random.default_rng(0)
    for name in ("fi", "en"):
        with IndexedWriter(folder / name, np.uint16) as writer:
            for length in rng.integers(50, 300, 200):
                walk = rng.integers(0, 256) + np.cumsum(rng.integers(0, 3, length))
                writer.add_document((walk % 256).astype(np.uint16))


def write_run(file: Path, layout: str, data: Path, sources: Path) -> None:
    """A tiny run with data files of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data.mkdir()
    for path in sources.iterdir():
        if path.suffix in (".bin", ".idx", ".json"):
            shutil.copy(path, data / path.name)
    model = {"num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 176, "num_attention_heads": 8, "num_key_value_heads": 4}
    run = {
        "run_directory": str(file.parent / "run"),
        "model": {**model, "vocab_size": 256, "max_position_embeddings": 256},
        "parallel": LAYOUTS[layout],
        "data": {
            "sequence_length": 64,
            "sources": [{"name": name, "path": str(data / name), "weight": 0.5} for name in ("fi", "en")],
            "validation": [{"name": "fi", "source": "fi", "last_sequences": 9}],
        },
        "training": {"steps": STEPS, "global_batch_size": 4, "precision": "fp32", "validate_every_steps": SAVE_EVERY},
        "optimizer": {"learning_rate": 3e-3, "warmup_fraction": 0.1},
        "checkpoint": {"initial": "random", "save_every_steps": SAVE_EVERY, "keep_last": KEEP_LAST},
        "faults": {"hang_least_seconds": 10.0, "hang_factor": 5.0, "hang_other_seconds": 90.0, "spike_deviations": 0.0},
    }
    file.write_text(tomli_w.dumps(run))
