"""What it costs a step to be observed.

    python benchmarks/observe.py [--world 1024] [--sources 4] [--rounds 2000] [--step-ms 100]

Everything that is done for a step's record beside the step itself, on rank 0 of a run of so many ranks: sources of its samples, the
ranks' numbers among the votes, losses by source, the ledger, rates and phases, the line in metrics.jsonl, and what wandb (offline)
and TensorBoard take before a thread of theirs goes on. Microseconds a step, median, and their sum as a share of the step. The norm
of the weights, every 100 steps by default, depends on the model and is not among them. The last line is JSON.
"""

import sys

sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main() -> None:
    """Measure each part in turn, again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=1024)
    parser.add_argument("--sources", type=int, default=4)
    parser.add_argument("--batch", type=int, default=512, help="sequences of a step")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--step-ms", type=float, default=100.0)
    args = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_SILENT"] = "true"
    with tempfile.TemporaryDirectory() as name:
        parts = build_parts(Path(name), args)
        taken: dict[str, list[float]] = {part: [] for part in parts}
        for number in range(args.rounds):
            for part, work in parts.items():
                began = time.perf_counter()
                work(number)
                taken[part].append(1e6 * (time.perf_counter() - began))
    medians = {part: statistics.median(values) for part, values in taken.items()}
    for part, microseconds in medians.items():
        print(f"{part:<24} {microseconds:8.1f} us")
    share = sum(medians.values()) / (1e3 * args.step_ms)
    print(f"{'all':<24} {sum(medians.values()):8.1f} us, {share:.2%} of a step of {args.step_ms:g} ms")
    print(json.dumps({"microseconds": medians, "share": share, "world": args.world}))


def build_parts(folder: Path, args: argparse.Namespace) -> dict[str, Callable[[int], Any]]:
    """Each thing that is done for a step, by its name; it is given the step's number."""
    from megatron_poro.config import load_run
    from megatron_poro.data import TrainingData, ledger_at
    from megatron_poro.engine.platform import start_platform
    from megatron_poro.observe import open_sinks

    platform = start_platform(0)
    from megatron_poro.engine.step import Microbatch, add_losses
    from megatron_poro.training.measures import OF_RANKS, StepMeasures

    config = load_run(write_run(folder, args))
    data = TrainingData(config.data)
    measures = StepMeasures(config, platform, rank=0, world_size=args.world)
    sinks = open_sinks(config.observe, folder, {})
    sums = [torch.rand(1, dtype=torch.float64) for _ in range(32)]
    reports = [(Microbatch(np.zeros((1, 2), np.int64), 1, [n % args.sources]), value, 8192) for n, value in enumerate(sums)]
    of_ranks = [1.0] * (len(OF_RANKS) * args.world)
    record = {"event": "step", "step": 0, "time": time.time(), "loss": 2.0, "gradient_norm": 1.0, "learning_rate": 1e-4}
    record["losses"] = {source.name: 2.0 for source in config.data.sources}
    record["source_tokens"] = {source.name: 1 for source in config.data.sources}
    record |= measures.of_step(of_ranks, tokens=1, seconds=1.0, stalled=0.0)

    return {
        "sources of the samples": lambda n: data.sources_of(range(n, n + args.batch)).tolist(),
        "numbers of a rank": lambda n: torch.tensor([0.0, *measures.own(0.1)], dtype=torch.float64).tolist(),
        "losses by source": lambda n: add_losses(torch.zeros(2, args.sources, dtype=torch.float64), reports),
        "ledger": lambda n: {entry.name: entry.tokens for entry in ledger_at(data.order, n).sources},
        "rates and phases": lambda n: measures.of_step(of_ranks, tokens=1, seconds=1.0, stalled=0.0),
        "sinks": lambda n: sinks.write({**record, "step": n}),
    }


def write_run(folder: Path, args: argparse.Namespace) -> Path:
    """A run file with its data."""
    import tomli_w

    from data_indexing.writer import IndexedWriter

    sources = [{"name": f"source{n}", "path": f"text{n}", "weight": 1.0} for n in range(args.sources)]
    rng = np.random.default_rng(0)
    for source in sources:
        with IndexedWriter(folder / str(source["path"]), np.uint16) as writer:
            for _ in range(200):
                writer.add_document(rng.integers(0, 1000, 500).astype(np.uint16))
    run = {
        "run_directory": ".",
        "model": {
            "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 1000,
        },
        "data": {"sequence_length": 64, "sources": sources},
        "training": {"steps": 100000, "global_batch_size": args.batch},
        "optimizer": {"learning_rate": 1e-3},
        "checkpoint": {"initial": "random"},
        "observe": {"wandb_project": "benchmark", "tensorboard": True},
    }  # fmt: skip
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(run))
    return path


if __name__ == "__main__":
    main()
