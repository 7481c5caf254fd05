"""Saving and loading beside raw files of the same bytes, what saving costs the training, and the way back to the first step.

    python benchmarks/checkpoint.py --folder SCRATCH [--rounds 3] [--steps 6]

A Llama with 56 million parameters (8 layers, 512 wide, 32,000 tokens) in fp32 and bf16 on one CPU process. In each round: the same
bytes written raw (buffered, then fsync; and around the page cache, which is the limit), a save that is waited for, and one beside
the training. The stall is what the training loop waited for the second; the slowdown is how much longer the steps beside it took
than as many steps alone, which counts the processor time that the writer takes from them. Loading is read from a cold cache and
counts the verification. The last figures come from the command itself: `poro train` on a run that was stopped, until its first
step is logged. A figure is the median of the rounds, a ratio the median of the rounds' ratios.
"""

import sys

sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from data_indexing.writer import IndexedWriter
from megatron_poro.config import RunConfig, load_run
from megatron_poro.conversion.files import OutFile
from megatron_poro.engine.launch import World
from megatron_poro.engine.paths import list_checkpoints, read_state
from megatron_poro.engine.platform import start_platform
from megatron_poro.topology import Layout

MODEL = {"num_layers": 8, "hidden_size": 512, "ffn_hidden_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 4}
Figures = dict[str, float]


class Events:
    """Hears what became of saves."""

    def saved(self, order: Any) -> None:
        """Nothing to do."""

    def failed(self, target: Path, problem: str) -> None:
        """A save that failed spoils the figures."""
        raise SystemExit(f"{target}: {problem}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder on the disk to be measured, made new")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default: 3)")
    parser.add_argument("--steps", type=int, default=6, help="training steps beside a save (default: 6)")
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.precision:
        print(json.dumps(measure(args)))
        return
    shutil.rmtree(args.folder, ignore_errors=True)
    report = {}
    for precision in ("fp32", "bf16"):
        write_run(args.folder / precision, precision)
        words = [sys.executable, __file__, *sys.argv[1:], "--precision", precision]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        figures = summarise(json.loads(done.stdout.splitlines()[-1]))
        figures |= summarise([time_the_command(args.folder / precision) for _ in range(args.rounds)])
        report[precision] = figures
        print(f"{precision}")
        for name, (median, least, most) in figures.items():
            print(f"  {name:58} {median:10.3f}  [{least:.3f}-{most:.3f}]")
    print(json.dumps(report))


def summarise(rounds: list[Figures]) -> dict[str, tuple[float, float, float]]:
    """Median, least and most of each figure."""
    values = {name: [figures[name] for figures in rounds] for name in rounds[0]}
    return {name: (statistics.median(found), min(found), max(found)) for name, found in values.items()}


def write_run(folder: Path, precision: str) -> None:
    """A run file and random tokens."""
    folder.mkdir(parents=True)
    with IndexedWriter(folder / "text", np.uint16) as writer:
        for row in np.random.default_rng(0).integers(0, 32_000, (400, 1024), np.uint16):
            writer.add_document(row)
    run = {
        "run_directory": str(folder / "run"),
        "model": {**MODEL, "vocab_size": 32_000},
        "data": {"sequence_length": 512, "sources": [{"name": "text", "path": str(folder / "text"), "weight": 1.0}]},
        "training": {"steps": 100, "global_batch_size": 1, "precision": precision},
        "optimizer": {"learning_rate": 1e-4},
        "checkpoint": {"initial": "random"},
    }
    (folder / "run.toml").write_text(tomli_w.dumps(run))


def measure(args: argparse.Namespace) -> list[Figures]:
    """All rounds in this process."""
    platform = start_platform(0)
    from megatron_poro.engine.groups import start_groups
    from megatron_poro.engine.model import build_model
    from megatron_poro.engine.optimizer import build_optimizer
    from megatron_poro.engine.saving import CheckpointSaver

    config, layout = load_run(args.folder / args.precision / "run.toml"), Layout()
    listener = socket.create_server(("127.0.0.1", 0))
    world = World(0, 1, 0, port=listener.getsockname()[1], listen_fd=listener.fileno(), is_local=True)
    start_groups(world, layout, platform)
    chunks = build_model(config, layout, platform)
    optimizer = build_optimizer(config, chunks)
    saver = CheckpointSaver(config, chunks, optimizer, platform=platform, listener=Events())
    bench = Bench(config, chunks, optimizer, saver, args)
    bench.round()  # the first one finds memory and files for the others
    return [bench.round() for _ in range(args.rounds)]


class Bench:
    """One model, and what is measured of it."""

    def __init__(self, config: RunConfig, chunks: Any, optimizer: Any, saver: Any, args: argparse.Namespace) -> None:
        self.config, self.chunks, self.optimizer, self.saver, self.args = config, chunks, optimizer, saver, args
        self.number = 0
        self.rows = np.random.default_rng(1).integers(0, 32_000, (1, 513), np.uint16)

    def round(self) -> Figures:
        """Everything once."""
        folder = self.args.folder / self.args.precision
        shutil.rmtree(folder / "run", ignore_errors=True)
        self.saver.asynchronous = False
        waited = timed(self.save)
        (checkpoint,) = list_checkpoints(folder / "run")
        (tensors,) = checkpoint.glob("*.distcp")
        content = tensors.read_bytes()
        gigabytes = len(content) / 1e9
        buffered = timed(lambda: write_buffered(folder / "raw", content))
        direct = timed(lambda: write_direct(folder / "direct", content))
        alone_seconds = timed(self.train)
        self.saver.asynchronous = True
        self.saver.stall_seconds = 0.0
        beside_seconds = timed(lambda: (self.save(), self.train()))
        self.saver.finish(wait=True)
        stall = self.saver.stall_seconds
        drop_caches()
        load = timed(lambda: self.load(checkpoint))
        drop_caches()
        raw_read = timed(lambda: read_all(tensors))
        for leftover in ("raw", "direct"):
            (folder / leftover).unlink()
        return {
            "checkpoint, GB": gigabytes,
            "save, GB/s": gigabytes / waited,
            "save / raw buffered write, time": waited / buffered,
            "save / raw direct write, time": waited / direct,
            "raw buffered write, GB/s": gigabytes / buffered,
            "raw direct write, GB/s": gigabytes / direct,
            "save, s": waited,
            "stall of a save beside the training, s": stall,
            "stall / save that is waited for": stall / waited,
            "steps alone, s": alone_seconds,
            "slowdown of the steps beside a save / save that is waited for": (beside_seconds - alone_seconds) / waited,
            "verify and load, cold, GB/s": gigabytes / load,
            "verify and load / raw cold read, time": load / raw_read,
        }

    def save(self) -> None:
        """A checkpoint of the present numbers."""
        self.number += 1
        state = {"step": self.number, "samples": 0, "tokens": 0, "updates": self.number, "data": {}, "ledger": {}}
        self.saver.start(self.number, source={"name": "random"}, state=state)

    def train(self) -> None:
        """Some steps as the loop takes them."""
        from megatron_poro.engine.step import Microbatch, train_step

        def may_update(loss: float, gradient_norm: float) -> bool:
            self.saver.wait_for_copy()
            return True

        for _ in range(self.args.steps):
            train_step(self.chunks, self.optimizer, [Microbatch(self.rows, 1)], may_update=may_update)
            if self.saver.is_saving and not self.saver.unfinished:
                self.saver.finish()

    def load(self, checkpoint: Path) -> None:
        """Verify and load, as a resume does."""
        from megatron_poro.engine.checkpoint import find_damage, load_training

        if problem := find_damage(checkpoint):
            raise SystemExit(problem)
        load_training(checkpoint, self.config.model, self.chunks, self.optimizer, num_updates=read_state(checkpoint)["updates"])


def time_the_command(folder: Path) -> Figures:
    """From `poro train` to the first step of a stopped run in its metrics, and the same run from its beginning."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    first = time_to_step(folder, 1)
    resumed = time_to_step(folder, 2)
    return {"command to first step, random weights, s": first, "command to first resumed step, s": resumed}


def time_to_step(folder: Path, step: int) -> float:
    """Seconds from the command until the metrics have `step`; the run is then saved and stopped."""
    metrics = folder / "run" / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    began = time.monotonic()
    words = [sys.executable, "-m", "megatron_poro", "train", str(folder / "run.toml"), f"--stop-after={step}"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if metrics.exists() and f'"event": "step", "step": {step},'.encode() in metrics.read_bytes()[before:]:
            seconds = time.monotonic() - began
            process.wait()
            return seconds
        time.sleep(0.005)
    raise SystemExit(f"{' '.join(words)}: ended without a step")


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def write_buffered(path: Path, content: bytes) -> None:
    """Through the page cache, then to the disk."""
    with open(path, "wb") as file:
        file.write(content)
        os.fsync(file.fileno())


def write_direct(path: Path, content: bytes) -> None:
    """Around the page cache, without a hash."""
    with OutFile(path) as file:
        file.write(content)


def read_all(path: Path) -> None:
    """Every byte of a file."""
    buffer = bytearray(2**24)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def drop_caches() -> None:
    """Have the next read come from the disk, where that is allowed."""
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        print("the page cache could not be dropped; reads are warm", file=sys.stderr)


if __name__ == "__main__":
    main()
