"""What stands between a submission and the first step, and a rank's start among a thousand.

    python benchmarks/start_up.py ranks [--world 1024] [--rounds 5]
    python benchmarks/start_up.py element --folder SCRATCH [--rounds 3]     (needs `make cluster`, and its SLURM_CONF)

`ranks`: a process that believes to be one of so many (torch's fake process group, so without the network) loads everything, makes
all groups of TP8 x PP8, builds its part of a small model, optimizer and data: seconds for the first, a middle and the last rank.

`element`: the tiny run as `poro launch` submits it, and as a bare script with nothing but `srun poro train`, in turn: seconds from
submission to the first step. The difference is ours: checks, notes, the look at the nodes. The last line is JSON.
"""

import sys

sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's

import argparse
import json
import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

MODEL = {
    "num_layers": 16, "hidden_size": 512, "ffn_hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
    "vocab_size": 32000,
}  # fmt: skip


def main() -> None:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("ranks", "element", "rank"))
    parser.add_argument("--world", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.part == "rank":
        start_rank(args.rank, args.world, args.folder)
    else:
        print(json.dumps(measure_ranks(args) if args.part == "ranks" else measure_elements(args)))


def write_run(folder: Path, *, name: str = "run", **changes: Any) -> Path:
    """A tiny run file with its data."""
    from data_indexing.writer import IndexedWriter

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "text.bin").exists():
        rng = np.random.default_rng(0)
        with IndexedWriter(folder / "text", np.uint16) as writer:
            for _ in range(200):
                writer.add_document(rng.integers(0, 1000, 500).astype(np.uint16))
    run = {
        "run_directory": name,
        "model": MODEL,
        "data": {"sequence_length": 64, "sources": [{"name": "text", "path": "text", "weight": 1.0}]},
        "training": {"steps": 4, "global_batch_size": 128, "precision": "bf16"},
        "optimizer": {"learning_rate": 1e-3},
        "checkpoint": {"initial": "random"},
        **changes,
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(run))
    return path


def measure_ranks(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part of a rank's start."""
    import tempfile

    found: dict[int, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        write_run(Path(name), parallel={"tensor": 8, "pipeline": 8, "sequence": True})
        for _ in range(args.rounds):
            for rank in (0, args.world // 2 + 3, args.world - 1):
                words = [sys.executable, __file__, "rank", "--rank", str(rank), "--world", str(args.world), "--folder", name]
                began = time.time()
                done = subprocess.run(
                    words,
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, "BEGAN": str(began), "OMP_NUM_THREADS": "1"},
                )
                found.setdefault(rank, []).append(json.loads(done.stdout.splitlines()[-1]))
    report = {}
    print(f"seconds of a rank's start, one of {args.world}, median of {args.rounds}")
    for rank, rounds in found.items():
        parts = {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}
        report[rank] = {**parts, "all": statistics.median(sum(each.values()) for each in rounds)}
        print(f"rank {rank:5}: " + ", ".join(f"{part} {seconds:.2f}" for part, seconds in report[rank].items()))
    return {"world": args.world, "ranks": report}


def start_rank(rank: int, world_size: int, folder: Path) -> None:
    """All that a rank does before it loads a checkpoint, but for the network."""
    marks = [float(os.environ["BEGAN"])]
    names = []

    def mark(name: str) -> None:
        names.append(name)
        marks.append(time.time())

    from megatron_poro.config import load_run
    from megatron_poro.engine.launch import World
    from megatron_poro.training.start import check_before_launch, layout_of

    config = load_run(folder / "run.toml")
    layout = layout_of(config, world_size)
    check_before_launch(config, layout)
    mark("run file and data")
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from megatron_poro.engine.platform import Platform, start_platform

    platform = start_platform(rank % 8)
    from megatron_poro.data import TrainingData
    from megatron_poro.engine.groups import start_groups
    from megatron_poro.engine.model import build_model
    from megatron_poro.engine.optimizer import build_optimizer
    from megatron_poro.training import loop  # noqa: F401 - what a rank loads

    mark("imports")
    join: Callable[..., None] = dist.init_process_group
    dist.init_process_group = lambda backend, **settings: join("fake", **{**settings, "store": FakeStore()})
    start_groups(World(rank, world_size, rank % 8), layout, Platform(platform.kind, platform.device, platform.backend))
    mark("groups")
    chunks = build_model(config, layout, platform)
    build_optimizer(config, chunks)
    mark("model and optimizer")
    TrainingData(config.data).close()
    mark("data")
    seconds = {name: after - before for name, before, after in zip(names, marks[:-1], marks[1:], strict=True)}
    print(json.dumps(seconds), flush=True)
    assert torch.is_grad_enabled()
    os._exit(0)


def measure_elements(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds from submission to the first step, ours and bare, in turn."""
    taken: dict[str, list[float]] = {"launch": [], "bare": []}
    for number in range(args.rounds):
        for kind in ("bare", "launch") if number % 2 else ("launch", "bare"):
            path = write_run(
                args.folder, name=f"{kind}{number}", parallel={"tensor": 2}, training={"steps": 4, "global_batch_size": 4}
            )
            began = time.time()
            submit = submit_ours if kind == "launch" else submit_bare
            submit(path)
            taken[kind].append(wait_for_step(args.folder / path.stem) - began)
            while subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout.strip():
                time.sleep(0.2)
            print(f"{kind}: {taken[kind][-1]:.1f} s to the first step", flush=True)
    ours = statistics.median(ours - bare for ours, bare in zip(taken["launch"], taken["bare"], strict=True))
    print(f"ours: {ours:.1f} s")
    return {"seconds": taken, "ours": ours}


def submit_ours(path: Path) -> None:
    """`poro launch`."""
    words = ("launch", str(path), "--cluster", "test", "--nodes", "2", "--elements", "1", "--time", "0:10:00")
    subprocess.run([sys.executable, "-m", "megatron_poro", *words], check=True, stdout=subprocess.DEVNULL)


def submit_bare(path: Path) -> None:
    """A script with nothing but the step."""
    step = shlex.join(["srun", sys.executable, "-m", "megatron_poro", "train", str(path)])
    words = ("--nodes=2", "--ntasks-per-node=1", "--mem=8G", "--partition=dev-g", "--account=project_1", "--output=/dev/null")
    subprocess.run(["sbatch", *words, f"--wrap=export OMP_NUM_THREADS=1; {step}"], check=True, stdout=subprocess.DEVNULL)


def wait_for_step(run: Path) -> float:
    """When the first step was noted."""
    from megatron_poro.observe import read_metrics

    while True:
        records = read_metrics(run / "metrics.jsonl")
        if steps := [record for record in records if record["event"] == "step"]:
            return float(steps[0]["time"])
        time.sleep(0.1)


if __name__ == "__main__":
    main()
