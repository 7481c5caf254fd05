"""A run directory of any length, written as a training would: every metric of the catalog, spikes, restarts, a rollback, stages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.runs import write_run

HOSTILE = "<script>alert(1)</script>"
SOURCES = ("fi", "en", HOSTILE)
BATCH_TOKENS = 8 * 64
RESTART_EVERY = 5_000
PHASES = ("data", "forward", "backward", "gradients", "optimizer", "other")
VERSIONS = {"megatron_poro": "0.1.0", "torch": "2.13"}


def write_synthetic(folder: Path, num_steps: int, *, spikes: dict[int, float] | None = None, batch: int = 8) -> Path:
    """The run directory of `num_steps` steps. `spikes` are losses of certain steps; the first of them is skipped."""
    directory = folder / "run"
    directory.mkdir(parents=True)
    sources = [{"name": name, "path": str(folder / f"source{n}"), "weight": 1.0} for n, name in enumerate(SOURCES)]
    stage = {"from_tokens": num_steps // 2 * BATCH_TOKENS, "weights": {"fi": 1.0, HOSTILE: 2.0}}
    changes = {
        "run_directory": str(directory),
        "data": {"sources": sources, "stages": [stage]},
        "training": {"steps": num_steps, "global_batch_size": batch},
    }
    write_run(directory / "config.toml", changes)
    with open(directory / "metrics.jsonl", "w") as file:
        for record in records(num_steps, spikes or {}, batch):
            file.write(json.dumps(record) + "\n")
    event = {
        "event": "failed",
        "kind": "bug",
        "rank": 3,
        "host": "node7",
        "code": 1,
        "message": HOSTILE,
        "time": RESTART_EVERY + 5.0,
    }
    (directory / "events.jsonl").write_text(json.dumps(event) + "\n")
    return directory


def records(num_steps: int, spikes: dict[int, float], batch: int) -> Iterator[dict[str, Any]]:
    """All records. Every RESTART_EVERY steps the run is killed and goes on 10 steps before."""
    rng = np.random.Generator(np.random.PCG64(7))
    noise = rng.standard_normal(num_steps + 1)
    yield _start(0)
    for step in range(1, num_steps + 1):
        yield _step(step, spikes.get(step, 2 + 6 / (1 + step / 500) + 0.05 * float(noise[step])), batch)
        if step == next(iter(spikes), 0):
            yield {"event": "bad_step", "step": step, "time": step + 0.0, "reason": "spike", "samples": [[8, 15]]}
        if step % 1000 == 0:
            losses = {"fi": 3 - step / num_steps, "en": 2.5}
            yield {
                "event": "validation",
                "step": step,
                "time": step + 0.1,
                "seconds": 4.0,
                "losses": losses,
                "perplexities": losses,
            }
        if step % RESTART_EVERY == 0 and step < num_steps:
            yield _start(step - 10, time=step + 10.0)
            yield from (_step(again, 3.0, batch) for again in range(step - 9, step + 1))
    yield {"event": "end", "step": num_steps, "time": num_steps + 1.0, "stopped_by": ""}


def _start(step: int, **values: Any) -> dict[str, Any]:
    return {
        "event": "start",
        "step": step,
        "time": float(step),
        "origin": "random",
        "layout": "TP2",
        "versions": VERSIONS,
        **values,
    }


def _step(step: int, loss: float, batch: int) -> dict[str, Any]:
    return {
        "event": "step",
        "step": step,
        "time": float(step),
        "loss": loss,
        "perplexity": 2.718**loss,
        "gradient_norm": 1 + loss / 10,
        "learning_rate": 3e-4 * (1 - step / 1e6),
        "updated": True,
        "samples": step * batch,
        "tokens": step * batch * 64,
        "seconds": 1.2,
        "tokens_per_second": 4e5,
        "tokens_per_second_per_device": 4e5 / 64,
        "model_tflops_per_device": 120.0,
        "mfu": 0.41,
        "mfu_full_attention": 0.44,
        "device_memory_bytes": 6e10,
        "host_memory_bytes": 9e9,
        "data_wait_seconds": 0.01,
        "save_stall_seconds": 0.0,
        "losses": {name: loss + n / 10 for n, name in enumerate(SOURCES)},
        "source_tokens": {name: step * batch * 64 // len(SOURCES) for name in SOURCES},
        "phase_seconds": dict.fromkeys(PHASES, 0.2),
    }
